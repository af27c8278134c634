"""What a person looks at after an attack: a grid of pictures as PNG, and a self-contained page as HTML."""

from jaxinvert.report.page import save_report_html
from jaxinvert.report.pictures import save_reconstructions_png
from jaxinvert.report.wording import captions

__all__ = ["captions", "save_reconstructions_png", "save_report_html"]
