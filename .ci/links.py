"""Checks the Markdown of the repository: each link to a file leads to one, each link to a heading to one that is there, and the README is short."""

import functools
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
README_LINES_MAX = 150
LINK = re.compile(r"!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^()\s]+(?:\([^()]*\))?)[^)]*\)")


def prose(path):
    """A file's lines without what is fenced or quoted as code."""
    is_fenced = False
    for line in path.read_text().splitlines():
        if line.lstrip().startswith(("```", "~~~")):
            is_fenced = not is_fenced
        elif not is_fenced:
            yield line


@functools.cache
def anchors(path):
    """The names that GitHub gives the headings of a file."""
    found, times = set(), {}
    for line in prose(path):
        if heading := re.match(r"#{1,6} +(.*?) *#*$", line):
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).replace("`", "")
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            times[slug] = times.get(slug, -1) + 1
            found.add(f"{slug}-{times[slug]}" if times[slug] else slug)
    return found


def broken(path):
    """The links of a file that lead nowhere. The text of a link may go on in the next line."""
    for paragraph in "\n".join(prose(path)).split("\n\n"):
        for target in LINK.findall(re.sub(r"`[^`]*`", "", paragraph)):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            there = (path.parent / name).resolve() if name else path
            if not there.exists() or anchor and there.suffix == ".md" and anchor not in anchors(there):
                yield f"{path.relative_to(ROOT)}: {target}"


def main():
    listed = subprocess.run(["git", "ls-files", "-z", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name]
    wrong = [link for path in files if path.exists() for link in broken(path)]
    lines = len((ROOT / "README.md").read_text().splitlines())
    if lines > README_LINES_MAX:
        wrong.append(f"README.md has {lines} lines; keep it to {README_LINES_MAX}")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
