"""Where docs/from_pytorch.md says that values differ from torch on purpose, they do."""

import pytest
from differences import CHECKS
from migration import DOCS

pytestmark = pytest.mark.without_x64


def test_the_checks_are_the_rows():
    table = (DOCS / "from_pytorch.md").read_text().split("## Where the values differ on purpose")[1]
    cases = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")][2:]
    assert cases == list(CHECKS)


@pytest.mark.parametrize("case", CHECKS)
def test_ours(case):
    assert CHECKS[case].ours()
