"""What pyproject.toml can't say: the README as a package index shows it."""

import re
from pathlib import Path

from setuptools import setup


def without_relative_links(markdown: str) -> str:
    """Markdown without pictures of the repository; links into it become their text."""
    away = r"(?!https?:|#|mailto:)[^)\s]*"
    markdown = re.sub(rf"!\[[^\]]*\]\({away}\)\n*", "", markdown)
    return re.sub(rf"\[([^\]]*)\]\({away}\)", r"\1", markdown)


setup(
    long_description=without_relative_links(
        (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    ),
    long_description_content_type="text/markdown",
)
