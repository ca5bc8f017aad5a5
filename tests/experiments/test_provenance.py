"""How a run was started, as its folder notes it."""

import json
import sys

from experiments import provenance


def test_how_a_run_was_started_is_noted_once_a_way(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["/somewhere/unimp", "train", "tiny"])
    provenance.note_provenance(tmp_path)
    provenance.note_provenance(tmp_path)
    monkeypatch.setattr(sys, "argv", ["unimp", "train", "tiny", "--loader.threads", "1"])
    provenance.note_provenance(tmp_path)
    noted = json.loads((tmp_path / "started.json").read_text())
    assert [one["command"] for one in noted] == ["unimp train tiny", "unimp train tiny --loader.threads 1"]
    assert "8 x cpu" in noted[0]["devices"]
    (tmp_path / "started.json").write_bytes(b"[\x00")
    provenance.note_provenance(tmp_path)
    assert len(json.loads((tmp_path / "started.json").read_text())) == 1, "what a crash left of it stops no run"
