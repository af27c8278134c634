"""Hooks of the site: pages made of files outside of `docs/`, their links, and one page of reference for each package.

A line `<!-- source: FILE -->` becomes the text of a Python file. README, changelog and the other files of the
repository stay where readers of the repository look for them. On the site, links between them lead to the site's
pages. A link to another file of the repository becomes plain text, unless `repo_url` says where the repository is.
"""

import ast
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "results.md": "experiments/README.md",
    **{
        f"details/{page.name}": f"experiments/details/{page.name}"
        for page in sorted((ROOT / "experiments" / "details").glob("*.md"))
    },
}
"""Pages of the site that are files elsewhere in the repository."""
FRONT = (
    "invert",
    "observe",
    "observe_targets",
    "Problem",
    "TextProblem",
    "ThreatModel",
    "declare",
    "register",
    "Attack",
    "Batch",
    "LocalTraining",
    "Observation",
    "Reconstruction",
)
"""Names of the package itself, described on the first page of the reference."""
SUBMODULES = {
    "attacks": ["objectives", "matching", "adaptive"],
    "defenses": ["registry", "accounting"],
    "integrations": ["capture", "flower", "nvflare"],
    "observation": ["captures"],
    "parallel": ["lanes", "devices"],
    "priors": ["regularizers", "parametrizations", "bases", "dead_leaves", "generators"],
}
"""Modules shown below the names that a package exports."""
_SOURCE = re.compile(r"^<!-- source: (\S+) -->$", flags=re.MULTILINE)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are files elsewhere, their pictures, and the reference."""
    for uri, source in PAGES.items():
        files.append(File.generated(config, uri, content=(ROOT / source).read_text(encoding="utf-8")))
    for picture in sorted((ROOT / "experiments" / "results").glob("*.png")):
        files.append(File.generated(config, f"results/{picture.name}", abs_src_path=str(picture)))
    for uri in _listed(config.nav, "api/"):
        files.append(File.generated(config, uri, content=_reference(Path(uri).stem)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points the page's links, which are relative to its file in the repository, to pages of the site."""
    here = PAGES.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    pages = {source: uri for uri, source in PAGES.items()}

    def on_the_site(match: re.Match) -> str:
        mark, text, target = match.groups()
        path, _, anchor = target.partition("#")
        if not path or ":" in path:
            return match[0]
        source = posixpath.normpath(posixpath.join(posixpath.dirname(here), path))
        uri = pages.get(source) or source.removeprefix("docs/").replace("experiments/results/", "results/")
        if files.get_file_from_path(uri) is not None:
            relative = posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".")
            return f"{mark}[{text}]({relative}{'#' + anchor if anchor else ''})"
        if not (ROOT / source).exists():
            return match[0]  # mkdocs warns of it
        return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{source})" if config.repo_url else text

    def included(match: re.Match) -> str:
        text = (ROOT / posixpath.dirname(here) / match[1]).read_text(encoding="utf-8")
        return f"```python\n{text}```"

    markdown = _SOURCE.sub(included, markdown)
    parts = re.split(r"(^```.*?^```)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else _LINK.sub(on_the_site, part) for part in parts)


def _listed(nav: list, prefix: str) -> list[str]:
    """The pages below `prefix` in the site's navigation."""
    found = []
    for entry in nav:
        for value in entry.values():
            found += _listed(value, prefix) if isinstance(value, list) else [value] * value.startswith(prefix)
    return found


def _reference(name: str) -> str:
    """The page of a package's reference, for mkdocstrings to fill."""
    if name == "index":
        package, title, names = ROOT / "jaxinvert", "jaxinvert", list(FRONT)
    else:
        package, title = ROOT / "jaxinvert" / name, f"jaxinvert.{name}"
        names = _exported(package / "__init__.py") if package.is_dir() else []
    shadowed = {one: path for one in names if (path := _shadowed(package, one))}
    members = "".join(f"        - {one}\n" for one in names if one not in shadowed)
    page = f"# {title}\n\n::: {title}\n    options:\n      show_submodules: false\n"
    page += f"      members:\n{members}" if members else ""
    for path in shadowed.values():
        page += f"\n::: {path}\n    options:\n      show_root_heading: true\n      show_root_toc_entry: true\n"
    for module in SUBMODULES.get(name, ()):
        page += f"\n## {name}.{module}\n\n::: jaxinvert.{name}.{module}\n"
        page += "    options:\n      heading_level: 3\n      show_submodules: false\n"
    return page


def _exported(file: Path) -> list[str]:
    """The names in a package's `__all__`; `*part.__all__` in it are those of a subpackage."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            names = []
            for each in node.value.elts:
                part = ast.unparse(each).removeprefix("*").removesuffix(".__all__")
                starred = isinstance(each, ast.Starred)
                names += _exported(file.parent / part / "__init__.py") if starred else [ast.literal_eval(each)]
            return names
    return []


def _shadowed(package: Path, name: str) -> str | None:
    """The path of an exported function whose module has its name: read statically, the module hides it."""
    for file in sorted(package.rglob(f"{name}.py")):
        names = {getattr(node, "name", "") for node in ast.parse(file.read_text(encoding="utf-8")).body}
        if name in names:
            return ".".join([*file.relative_to(ROOT).with_suffix("").parts, name])
    return None
