"""The four stages write the same bits as when tests/stages/golden.json was made."""

import pytest

from tests.stages import golden


@pytest.mark.slow
def test_every_golden_digest_is_reproduced(capsys):
    assert golden.main([]) == 0, capsys.readouterr().out
