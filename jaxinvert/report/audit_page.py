"""The report page of an audit: one self-contained HTML file with the verdict first, then its evidence.

Figures, tests and verdicts come from the audit; only the line-up is computed here, which says how many images a
person recognizes (see `metrics.recognition`). Pictures are chosen by rule, not by eye. Strings are untrusted (class
names are folder names), so everything that enters the page is escaped.
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxinvert.audit import SIGNIFICANCE, Audited
from jaxinvert.files import save_bytes
from jaxinvert.report.about import about_images
from jaxinvert.report.charts import MAX_KINDS, psnr_ranges
from jaxinvert.report.cost_charts import cost_charts, round_charts
from jaxinvert.report.line_up import line_up_of
from jaxinvert.report.pictures import as_byte_pairs, data_uri
from jaxinvert.report.risk_chart import attack_free_words, decision, risk_chart, under, worst_first
from jaxinvert.report.templates import render
from jaxinvert.report.wording import conclusion, flattened, image_name, plural

_NUM_RANDOM = 2
_MAX_COLUMNS = 12


class Pick(NamedTuple):
    """A private image to show.

    Attributes:
      why: the rule that chose it.
      client: index of the client.
      example: index of the image among the client's.
    """

    why: str
    client: int
    example: int


class Picture(NamedTuple):
    """A picture as a data URI, and its scores, `None` for an original.

    Attributes:
      address: the data URI.
      psnr_db: PSNR in dB.
      ssim: SSIM.
      identified: whether it picks out its image among all candidates.
    """

    address: str
    psnr_db: float | None = None
    ssim: float | None = None
    identified: bool = False


def save_audit_html(
    path: str | PathLike[str],
    *,
    audited: Sequence[Audited],
    record: Mapping[str, Any],
    title: str = "",
    command: str = "",
    captured: bool = False,
) -> None:
    """Writes one self-contained HTML page: no scripts, no requests, pictures and charts embedded.

    Args:
      path: the file to write.
      audited: the judged scenarios; the one with the worst verdict is in the headline.
      record: their record, see `jaxinvert.audit.record`.
      title: what was audited.
      command: the command that reproduces the audit.
      captured: whether the updates are captured ones.
    """
    place = worst_first(record["settings"])
    first = record["settings"][place]
    worst = first["attackers"][first["worst"]]
    rows = {"the attack": worst["attack"], **worst["controls"]}
    scale, ranges = psnr_ranges([row["psnr_db"] for row in rows.values()])
    audited = [audited[place], *audited[:place], *audited[place + 1 :]]
    picks = picks_of(audited[0])
    scores = audited[0].attackers[audited[0].worst].scores
    shape = (-1, *scores.matched.shape[2:])
    seen = line_up_of(*as_byte_pairs(audited[0].ground.truth.inputs.reshape(shape), scores.matched.reshape(shape)))
    kind = record["assumptions"].get("realism", {}).get("kind", "as deployed")
    closed = audited[0].attackers[audited[0].worst].summary.get("selected_by") == "closed form"
    about = about_images(worst["config"], record, closed=closed, captured=captured)
    page = render(
        "audit.html.jinja",
        record=record, title=title, command=command, significance=SIGNIFICANCE,
        seen=seen, conclusion=conclusion(seen) if seen else "",
        first=first, worst=worst, settings=record["settings"],
        cost_charts=cost_charts(record["settings"]), round_charts=round_charts(record["settings"]), kinds=MAX_KINDS,
        choices=choices_of(record["settings"]),
        decision=decision(record["settings"], kind=kind), about=about,
        setting_of_conclusion=under([first]), risk=risk_chart(record["settings"]),
        attack_free_words=attack_free_words(record["settings"]),
        evidence=list(zip(rows, rows.values(), ranges)), scale=scale,
        picks=picks, columns=picture_columns(audited, picks), height=audited[0].ground.truth.inputs.shape[2],
        image_name=image_name, assumptions=record["assumptions"],
        config=flattened(worst["config"]), versions=flattened(record["versions"]),
    )  # fmt: skip
    save_bytes(Path(path), page)


def picks_of(one: Audited) -> list[Pick]:
    """Images with the highest and the median PSNR, and random ones, without duplicates."""
    return picks_by(one.attackers[one.worst].scores.psnr_db)


def picks_by(values: np.ndarray) -> list[Pick]:
    """Items with the highest and the median value, and random ones, without duplicates; `values [T, B]`."""
    order = np.argsort(values, axis=None, kind="stable")
    at_random = np.random.default_rng(0).permutation(values.size)[:_NUM_RANDOM]
    chosen = {int(order[-1]): "closest", int(order[(len(order) - 1) // 2]): "median"}
    for index in at_random:
        chosen.setdefault(int(index), "at random")
    width = values.shape[1]
    return [
        Pick(why, index // width, index % width)
        for index, why in sorted(chosen.items(), key=lambda one: -values.flat[one[0]])
    ]


def picture_columns(audited: Sequence[Audited], picks: Sequence[Pick]) -> list[tuple[str, list[Picture]]]:
    """Columns of pictures: for each its heading, and one picture for each pick.

    The columns are the originals, reconstructions by the worst attacker of every scenario, and the controls of the
    first scenario.
    """
    truth, first = audited[0].ground.truth.inputs, audited[0].attackers[audited[0].worst]
    sources = [(reconstructed(one.name), one.attackers[one.worst].scores) for one in audited]
    sources += [(f"control: {name}", scores) for name, scores in first.controls.items()]
    columns = [("original", [Picture(_address(truth[pick.client, pick.example])) for pick in picks])]
    for name, scores in sources[:_MAX_COLUMNS]:
        pictures = [
            Picture(
                _address(scores.matched[at]),
                float(scores.psnr_db[at]),
                float(scores.ssim[at]),
                bool(scores.identified[at]),
            )
            for at in ((pick.client, pick.example) for pick in picks)
        ]
        columns.append((name, pictures))
    return columns


def reconstructed(setting: str) -> str:
    """The heading of the reconstructions under a setting."""
    return f"reconstruction {under([{'name': setting}])}"


def choices_of(settings: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The methods that the attack `auto` chose, in words, each with the attackers and rounds that it was chosen for.

    A single choice for all is listed for "every setting and attacker".

    Args:
      settings: settings of an audit's record.

    Returns:
      Pairs of names and choice.
    """
    takers: dict[str, list[str]] = {}
    for setting in settings:
        for name, attacker in setting["attackers"].items():
            takers.setdefault(attacker["choice"], []).append(f"{setting['name']}, {name} attacker")
        for after in (setting["leakage"] or ())[1:]:
            takers.setdefault(after["choice"], []).append(
                f"{setting['name']}, after {plural(after['round'], 'round')}"
            )
    if len(takers) == 1:
        takers = {choice: ["every setting and attacker"] for choice in takers}
    return [("; ".join(names), choice) for choice, names in takers.items() if choice]


def _address(image: np.ndarray) -> str:
    return data_uri(as_byte_pairs(image[None], image[None])[0][0])
