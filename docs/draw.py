"""Draws docs/cox.svg, the picture in README: `python docs/draw.py`. Plain text out, the same in every run."""

from pathlib import Path

INK, SOFT, KNOWN, NEW, LINK = "#24292f", "#57606a", "#2c7fb8", "#c0392b", "#5f9ea0"


def box(x, y, width, height, colour, title, *lines):
    """A rounded box with a bold title and lines below it."""
    middle = x + width / 2
    parts = [
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="#fff" stroke="{colour}" '
        'stroke-width="2"/>',
        f'<text x="{middle}" y="{y + 22}" font-weight="bold" fill="{colour}">{title}</text>',
    ]
    parts += [f'<text x="{middle}" y="{y + 42 + 17 * i}" fill="{SOFT}">{line}</text>' for i, line in enumerate(lines)]
    return parts


def arrow(x1, y1, x2, y2, text="", colour=INK):
    """An arrow with words above its middle."""
    words = (
        f'<text x="{(x1 + x2) / 2}" y="{(y1 + y2) / 2 - 8}" fill="{SOFT}" font-size="12">{text}</text>' if text else ""
    )
    line = f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}" stroke-width="2" marker-end="url(#tip)"/>'
    return [line, words] if words else [line]


def picture():
    """The whole picture as SVG text."""
    parts = box(10, 20, 160, 80, KNOWN, "known modalities", "images, language, …", "with labels")
    parts += box(10, 190, 160, 80, NEW, "new sensor", "few labels and pairs,", "the rest without")
    parts += arrow(170, 60, 250, 60, "1 extract")
    parts += box(250, 20, 150, 80, KNOWN, "feature banks", "of a frozen", "perceptor")
    parts += arrow(170, 230, 250, 230, "1 extract")
    parts += box(250, 190, 150, 80, NEW, "learner", "a small ViT, warmed", "up on the few labels")
    parts += arrow(400, 60, 480, 60, "2 connect")
    parts += box(480, 20, 170, 80, LINK, "connections", "map the features into", "the learner's space")
    parts += arrow(565, 100, 565, 190)
    parts += arrow(400, 230, 480, 230)
    parts += box(480, 190, 170, 80, LINK, "anchors", "recordings on which the", "modalities agree")
    parts += arrow(650, 230, 730, 230, "3 explore")
    parts += box(730, 190, 150, 80, NEW, "trained learner", "names recordings of", "the new sensor")
    parts += arrow(805, 190, 805, 100, "")
    parts += box(730, 20, 150, 80, INK, "4 evaluate", "accuracy, retrieval,", "table, report")
    return "\n".join([
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 890 290" font-family="system-ui, sans-serif" '
        'font-size="13" text-anchor="middle" role="img" aria-label="The four stages of COX">',
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L10 5L0 10z" fill="{INK}"/></marker></defs>',
        '<rect width="890" height="290" fill="#fff"/>',
        *parts,
        "</svg>",
        "",
    ])  # fmt: skip


if __name__ == "__main__":
    Path(__file__).with_name("cox.svg").write_text(picture(), encoding="utf-8")
