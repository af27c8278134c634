"""The pages' templates: `base.html.jinja` is the frame and the style of all, `parts.html.jinja` what they share."""

from typing import Any

import jinja2

from jaxinvert.report.wording import duration, number, plural


def render(name: str, **values: Any) -> bytes:
    """Fills the template `name`, escaping everything, and encodes it.

    What cannot be encoded is replaced, since class names that are folder names may hold lone surrogates.

    Args:
      name: of a file beside this one, such as `page.html.jinja`.
      **values: what it reads; a template that reads anything else fails.
    """
    env = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxinvert.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters.update(number=number, duration=duration, plural=plural)
    return env.get_template(name).render(**values).encode("utf-8", "replace")
