"""Reports for people: self-contained HTML pages, PNG pictures and a terminal table of attacks, sweeps and audits."""

from jaxinvert.report.audit_discrete_page import save_discrete_audit_html
from jaxinvert.report.audit_page import save_audit_html
from jaxinvert.report.capture_page import save_capture_html
from jaxinvert.report.page import save_report_html
from jaxinvert.report.pictures import save_reconstructions_png
from jaxinvert.report.sweep_figures import sweep_table
from jaxinvert.report.sweep_page import save_sweep_html
from jaxinvert.report.wording import captions

__all__ = [
    "captions",
    "save_audit_html",
    "save_capture_html",
    "save_discrete_audit_html",
    "save_reconstructions_png",
    "save_report_html",
    "save_sweep_html",
    "sweep_table",
]
