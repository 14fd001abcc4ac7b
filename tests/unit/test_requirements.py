"""Requirements, as far as the core looks at them."""

from __future__ import annotations

import pytest

from spear_core._requirements import check_requirement, parse_requirements


@pytest.mark.parametrize(
    "good",
    [
        *("six", "humanize>=4", "a-b_c.d==1.0", "x[extra,more]~=2.1", "x [e] >=1, <2"),
        *("x; python_version < '3.12'", "x>=1 ; sys_platform == 'linux'", "x(>=1)"),
        *("x==1.* --hash=sha256:00ff --hash=sha256:11ee", "x!=1.5,>=1"),
    ],
)
def test_requirements(good: str) -> None:
    check_requirement(good)


@pytest.mark.parametrize(
    "bad",
    [
        *("", " six", "six ", "-r other.txt", "--index-url=http://x", "-e .", "./x", "/x", "../x"),
        *("a @ file:///x", "a@https://x/y.whl", "git+https://x", "https://x/y.whl", "a\n--pre"),
        *("a b", "a==1 --pre", "a --hash=x", "a; -r x @ y", "a\r-r b", "x" * 5000, "six>=1@x"),
    ],
)
def test_what_is_something_else_to_an_installer_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match=r"expected|is no|no place|only packages"):
        check_requirement(bad)


def test_a_file() -> None:
    text = """# pinned
six==1.16  # the classic

humanize>=4 \\
    --hash=sha256:00ff
-r more.txt
./local
"""
    assert parse_requirements(text) == (
        ["six==1.16", "humanize>=4 --hash=sha256:00ff"],
        [
            (6, "-r more.txt: options for the installer have no place here"),
            (7, "./local: is no requirement such as `name`, `name>=1.2` or `name[extra]==1.2`"),
        ],
    )


def test_a_line_that_goes_on_at_the_end() -> None:
    assert parse_requirements("six \\") == (
        [],
        [(1, "six: the line goes on, and the file ends")],
    )
