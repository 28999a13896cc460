import json

import pytest

from benchmarks import scale


def test_every_part_has_three_sizes_and_a_part_replaces_its_own_rows_alone(tmp_path):
    result = tmp_path / "scale.json"
    earlier = {"unit": "runs", "sizes": [1, 2, 3]}
    result.write_text(json.dumps({"rows": {"fit": earlier}}))
    scale.main(["order of an epoch", "packing", "--divide", "1000", "--result", str(result)])
    rows = json.loads(result.read_text())["rows"]
    assert list(rows) == ["packing", "order of an epoch", "fit"] and rows["fit"] == earlier
    assert rows["packing"]["sizes"] == [100, 1_000, 10_000]
    assert all(value > 0 for value in rows["packing"]["peak_gb"])
    assert all(len(part.sizes) == 3 for part in scale.PARTS.values())


def test_an_unknown_part_is_answered_with_those_that_are_there(capsys):
    with pytest.raises(SystemExit):
        scale.main(["pack"])
    assert "no part pack; there are packing, start of a rank" in capsys.readouterr().err
