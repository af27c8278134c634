"""Renders the pages' templates: `base.html.jinja` has frame and style, `parts.html.jinja` shared macros."""

import functools
from typing import TYPE_CHECKING, Any

from jaxinvert.audit import percent
from jaxinvert.report.wording import duration, number, plural

if TYPE_CHECKING:
    import jinja2


def render(name: str, **values: Any) -> bytes:
    """Renders the template `name` with all values escaped, and encodes it as UTF-8.

    Characters that cannot be encoded are replaced: class names are folder names and may hold lone surrogates.

    Args:
      name: a template in this package, such as `page.html.jinja`.
      **values: the template's variables; undefined variables raise an error.
    """
    return compiled(name).render(**values).encode("utf-8", "replace")


def compiled(name: str) -> "jinja2.Template":
    """The template `name`, which is compiled once; that takes longer than to render a small page."""
    return _environment().get_template(name)


@functools.cache
def _environment() -> "jinja2.Environment":
    """Where templates are found and kept."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxinvert.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, duration=duration, percent=percent, plural=plural)
    return environment
