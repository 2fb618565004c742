"""The four stages write the same bits as when tests/stages/golden.json was made."""

import json

import pytest

from tests.stages import golden


@pytest.mark.slow
def test_every_golden_digest_is_reproduced(capsys):
    with golden.one_thread():
        machine = golden.probe()
    if machine not in json.loads(golden.FILE.read_text())["bits"]:
        pytest.skip(f"golden.json has no bits of this machine's arithmetic, {machine}")
    assert golden.main([]) == 0, capsys.readouterr().out
