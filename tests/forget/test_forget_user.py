"""A user is forgotten as an operator does it: one command, and nothing of theirs is left anywhere."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import pytest

from afterword.cli import main
from afterword.errors import ConflictError
from afterword.feedback.collect.collect import collect
from afterword.feedback.importing.imports import import_file
from afterword.forget import as_text, forget_user
from afterword.formats.export import export
from afterword.formats.registry import TRAINING
from afterword.records import Candidate, Feedback, Interaction, Release, Report, Turn, Verdict
from afterword.release.publish import publish, rollback
from afterword.store import Store
from afterword.store.files import folder_hash
from afterword.store.locks import alone
from tests.release.conftest import write_adapter

ADA, BOB = "ada.l@example.org", "bob@example.org"
SECRET = "Lord Byron's daughter lives at 12 St James Square"
OTHER = "the recipe for elderflower cordial from my aunt"


def talk(user: str, words: str, n: int) -> dict[str, Any]:
    texts = [f"{words}, take {n}?", f"I see: {words}.", "Shorter, please.", f"Fine: {words[:20]}."]
    messages = [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]
    return {"id": f"{words[:3]}{n}", "user": user, "messages": messages}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Two users; k1 learned from Bob, k2 (served) from both on top of it, k3 on top of that."""
    home = tmp_path / "data"
    log = tmp_path / "log.jsonl"
    rows = [talk(user, words, n) for n in range(3) for user, words in ((ADA, SECRET), (BOB, OTHER))]
    bad = {"messages": [{"role": "boss", "content": SECRET}]}
    log.write_bytes(b"\n".join(orjson.dumps(row) for row in [*rows, bad, {"messages": []}]))
    with Store.open(home / "afterword.db") as store:
        import_file(store, log, "openai")
        collect(store)
        made = {i.id: store.get(Turn, i.turn).user for i in store.rows(Interaction)}
        bobs = tuple(i for i, user in made.items() if user == BOB)
        adas = tuple(i for i, user in made.items() if user == ADA)
        assert len(bobs) == len(adas) == 3
        for name, parent, learned in (("k1", None, bobs[:1]), ("k2", "k1", (*bobs[1:], adas[0])), ("k3", "k2", bobs)):
            _release(store, home, name, parent, learned)
    (home / "cache" / "evaluate").mkdir(parents=True)
    (home / "cache" / "evaluate" / "answers.jsonl").write_text(json.dumps(["key", SECRET]), encoding="utf-8")
    for run, seen in (("k1", bobs), ("k2", ()), ("cut-off", adas)):
        (home / "runs" / run).mkdir(parents=True)
        (home / "runs" / run / "run.json").write_text(json.dumps({"interactions": seen}), encoding="utf-8")
        (home / "runs" / run / "alignment.txt").write_text(SECRET if run != "k1" else OTHER, encoding="utf-8")
    (home / "report.html").write_text(f"<p>{SECRET.replace(chr(39), '&#x27;')}</p>", encoding="utf-8")
    (home / "other.html").write_text(f"<p>{OTHER}</p>", encoding="utf-8")
    (home / "notes.json").write_text(json.dumps([{"x": SECRET}, {"x": OTHER}]), encoding="utf-8")
    (home / "odd").write_bytes(b"PK\x03\x04" + SECRET.encode())
    return home


def _release(store: Store, home: Path, name: str, parent: str | None, learned: tuple[str, ...]) -> None:
    folder = write_adapter(home / "adapters" / name, name[-1].encode())
    row = Candidate(id=name, path=f"adapters/{name}", base="tiny", parent=parent, interactions=learned, recipe={})
    examples = tuple({"interaction": i, "before": store.get(Interaction, i).hindsight} for i in learned)
    report = Report(id=f"rep-{name}", candidate=name, against=parent, suites={}, examples=examples,
                    about={"adapter_hash": folder_hash(folder)})  # fmt: skip
    verdict = Verdict(id=f"ver-{name}", candidate=name, report=report.id, passed=True, reasons=("better",))
    store.write(row, report, verdict)
    publish(store, row, verdict)


def run(home: Path, *arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, Any]:
    code = main([*arguments, "--dir", str(home), "--json"])
    text = capsys.readouterr().out
    return code, json.loads(text) if text.strip() else None


def left(home: Path, *words: str) -> list[str]:
    """Files with any of these words, whatever they are."""
    forms = {form.encode() for word in words for form in (word, json.dumps(word)[1:-1])}
    return [f.name for f in sorted(home.rglob("*")) if f.is_file() and any(n in f.read_bytes() for n in forms)]


TRACES = (SECRET, ADA, "Byron")


def test_one_command_forgets_everything(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, held = run(home, "forget", "--user", ADA, "--dry-run", capsys=capsys)
    assert code == 0 and (held["turns"], held["feedback"], held["interactions"], held["reports"]) == (6, 3, 3, 1)
    assert left(home, SECRET)
    code, report = run(home, "forget", "--user", ADA, capsys=capsys)
    assert code == 0 and report["clean"] and report["search"]["found"] == [] and report["search"]["needles"] >= 4
    assert left(home, *TRACES) == []
    with Store.open(home / "afterword.db") as store:
        assert store.tally(Turn, "user") == {BOB: 6} and store.count(Feedback) == 3 and store.count(Interaction) == 3
        served = store.release()
        assert served is not None and (served.candidate, served.action) == ("k1", "rollback")
        assert report["erasure"] in served.why
        with pytest.raises(LookupError, match="never served"):
            rollback(store, to="k9")
    assert [a["candidate"] for a in report["adapters"]] == ["k2", "k3"]
    assert sorted(p.name for p in (home / "quarantine").iterdir()) == ["k2", "k3"]
    assert sorted(p.name for p in (home / "adapters").iterdir()) == ["k1"]
    assert report["serves"] == {"default": "afterword@v000001"} and report["retrain"] == "afterword cycle"
    did = {Path(name).name: what for name, what in report["files"].items()}
    assert did == {
        "cache": "deleted", "k2": "deleted", "cut-off": "deleted", "report.html": "deleted", "odd": "deleted",
        "notes.json": "1 rows taken out, 1 left", "log.jsonl.jsonl": "1 rows taken out, 1 left",
    }  # fmt: skip
    assert (home / "other.html").exists() and (home / "runs" / "k1").exists()
    assert json.loads((home / "notes.json").read_text(encoding="utf-8")) == [{"x": OTHER}]
    assert not list((home / "forget").glob("*.pending")) and len(list((home / "forget").glob("era-*"))) == 2
    assert main(["forget", "--user", ADA, "--dir", str(home)]) == 4
    code, _ = run(home, "status", capsys=capsys)
    assert code == 0
    assert tmp_path.joinpath("log.jsonl").exists()  # the operator's own file is out of reach, and the report says so
    assert "moved or copied" in report["out_of_reach"]


def test_rejected_rows_are_forgotten_and_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home, log, out = tmp_path / "data", tmp_path / "log.jsonl", tmp_path / "zoe.jsonl"
    rows = [{"prompt": f"{name} has a question", "draft": "So.", "user_action": "hugged", "user": name}
            for name in ("zoe7", "bob", "zoe77")]  # fmt: skip
    log.write_text("\n".join([*map(json.dumps, rows), '{"user": "zoe7", "prompt": "cut']), encoding="utf-8")
    with Store.open(home / "afterword.db") as store:
        import_file(store, log, "events")
    (home / "runs" / "r").mkdir(parents=True)
    (home / "runs" / "r" / "log.txt").write_text("seen: zoe7", encoding="utf-8")
    assert main(["export", "--user", "zoe7", "--output", str(out), "--dir", str(home)]) == 0
    assert [json.loads(line)["record"] for line in out.read_text(encoding="utf-8").splitlines()] == ["rejects"] * 2
    capsys.readouterr()
    assert run(home, "forget", "--user", "zoe7", "--dry-run", capsys=capsys)[1]["rejects"] == 2
    code, report = run(home, "forget", "--user", "zoe7", capsys=capsys)
    assert code == 0 and report["clean"] and not (home / "runs" / "r" / "log.txt").exists() and not out.exists()
    kept = (home / "rejects" / "log.jsonl.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["user"] for line in kept] == ["bob", "zoe77"]
    assert main(["forget", "--user", "zoe7", "--dir", str(home)]) == 4
    rejects = home / "rejects" / "log.jsonl.jsonl"
    with Store.open(home / "afterword.db") as store:  # the same file again
        summary = import_file(store, log, "events")
        assert summary.rejected == {"unknown_action": 3, "cut_off": 1} and b"zoe7" not in rejects.read_bytes().replace(
            b"zoe77", b""
        )
    again = [json.loads(line) for line in rejects.read_text(encoding="utf-8").splitlines()]
    assert [line.get("user") for line in again] == [None, "bob", "zoe77", None]
    assert all("erased" in again[n]["detail"] for n in (0, 3))
    assert main(["forget", "--user", "zoe7", "--dir", str(home)]) == 4


def test_the_report_can_be_checked_by_others(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, report = run(home, "forget", "--user", ADA, capsys=capsys)
    path = str(home / "forget" / f"{report['erasure']}.json")
    code, found = run(home, "forget", "--check", path, "--user", ADA, capsys=capsys)
    assert code == 0 and [c["check"] for c in found["checks"]] == [
        "erasure", "rows", "quoted", "served", "adapters", "finished", "user", "held",
    ]  # fmt: skip
    assert main(["forget", "--check", path, "--dir", str(home)]) == 0
    assert "ok" in capsys.readouterr().out
    code, found = run(home, "forget", "--check", path, "--user", BOB, capsys=capsys)
    assert code == 1 and [c["check"] for c in found["checks"] if not c["ok"]] == ["user", "held"]
    changed = json.loads(Path(path).read_text(encoding="utf-8"))
    changed["rows"]["turns"].append("imp-unknown")
    changed["erasure"] = "era-0"
    Path(path).write_text(json.dumps(changed), encoding="utf-8")
    code, found = run(home, "forget", "--check", path, capsys=capsys)
    assert code == 1 and [c["check"] for c in found["checks"] if not c["ok"]] == ["erasure", "rows"]
    (home / "quarantine" / "k2").rename(home / "adapters" / "k2")
    Path(path).write_text(json.dumps(report), encoding="utf-8")
    code, found = run(home, "forget", "--check", path, capsys=capsys)
    assert code == 1 and "not k2" in next(c["detail"] for c in found["checks"] if not c["ok"])
    for bad in ("[]", "{}", "no json"):
        Path(path).write_text(bad, encoding="utf-8")
        assert main(["forget", "--check", path, "--dir", str(home)]) == 2
    assert main(["forget", "--dir", str(home)]) == 2 and "name the user" in capsys.readouterr().err


def test_adapters_can_be_deleted_at_once(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, report = run(home, "forget", "--user", ADA, "--delete-adapters", capsys=capsys)
    assert [a["folder"] for a in report["adapters"]] == [None, None] and not list((home / "quarantine").iterdir())
    assert "k2 (afterword@v000002): deleted" in as_text(report)


def test_a_tainted_adapter_is_never_served_again(home: Path) -> None:
    with Store.open(home / "afterword.db") as store:
        forget_user(store, ADA)
        (home / "quarantine" / "k2").rename(home / "adapters" / "k2")  # somebody brings it back
        late = Candidate(id="k4", path="adapters/k4", base="t", parent="k2", interactions=(), recipe={})
        store.write(late)
        assert set(store.tainted()) == {"k2", "k3", "k4"}
        with pytest.raises(Exception, match="quarantine"):
            rollback(store, to="k2")
        served = store.release()
        assert served is not None and served.candidate == "k1"


def test_when_no_ancestor_is_left_the_base_model_serves(home: Path) -> None:
    import shutil

    shutil.rmtree(home / "adapters" / "k1")
    with Store.open(home / "afterword.db") as store:
        report = forget_user(store, ADA)
        served = store.release()
        assert served is not None and served.candidate is None and report["serves"] == {"default": None}
        assert "the base model" in as_text(report)


def test_a_user_without_adapters_needs_no_release(home: Path) -> None:
    with Store.open(home / "afterword.db") as store:
        turn = Turn(id="t9", messages=({"role": "user", "content": "Only I say this strange thing"},), user="eve",
                    answer={"role": "assistant", "content": "Hm"})  # fmt: skip
        store.write(turn)
        releases = store.count(Release)
        report = forget_user(store, "eve")
        assert report["clean"] and report["adapters"] == [] and report["retrain"] is None
        assert store.count(Release) == releases and "none" in as_text(report)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_rows_are_found_in_exports_that_were_redacted(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    words = "Tell bob.b@example.org that the strange thing is only mine"
    with Store.open(home / "afterword.db") as store:
        store.write(Turn(id="t9", messages=({"role": "user", "content": words},), user="eve.e",
                         answer={"role": "assistant", "content": "Told."}))  # fmt: skip
    path = tmp_path / name
    assert main(["export", "turns", "--format", "openai", "--output", str(path), "--dir", str(home)]) == 0
    opened = gzip.open if name.endswith("gz") else open
    with opened(path, "rt", encoding="utf-8") as lines:
        text = lines.read()
        assert "strange thing" in text and "bob.b" not in text and "Tell [EMAIL] that" in text
    code, report = run(home, "forget", "--user", "eve.e", capsys=capsys)
    assert code == 0 and report["clean"]
    with opened(path, "rt", encoding="utf-8") as lines:
        assert "strange thing" not in lines.read()


def test_exports_are_found_and_cleaned(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = {"a.jsonl": "afterword", "b.json.gz": "openai", "c.parquet": "sharegpt", "d.jsonl.zst": "tensorzero",
              "e.json": "langfuse", "f.jsonl": "wildchat", "g.jsonl": "trl-prompt-completion"}  # fmt: skip
    for name, form in shapes.items():
        command = ["export", "turns", "--format", form, "--output", str(tmp_path / name), "--dir", str(home)]
        assert main([*command, *(["--split", "all"] if ("turns", form) in TRAINING else [])]) == 0
    assert main(["export", "--user", ADA, "--output", str(tmp_path / "ada.jsonl"), "--dir", str(home)]) == 0
    capsys.readouterr()
    _, report = run(home, "forget", "--user", ADA, capsys=capsys)
    did = {Path(name).name: what for name, what in report["files"].items()}
    assert did["a.jsonl"] == "6 rows taken out, 6 left" and did["b.json.gz"] == "3 rows taken out, 3 left"
    assert all(did[name] in ("6 rows taken out, 6 left", "3 rows taken out, 3 left") for name in shapes), did
    assert not (tmp_path / "ada.jsonl").exists()
    assert ADA not in json.dumps(report) and "ada.jsonl" not in json.dumps(report)
    with Store.open(tmp_path / "copy" / "a.db") as copy:
        for name in shapes:
            if name != "g.jsonl":
                assert not import_file(copy, tmp_path / name).rejected
        assert {t.user for t in copy.rows(Turn)} & {ADA} == set() and copy.count(Turn) > 0
        assert all("Byron" not in json.dumps(t.to_dict()) for t in copy.rows(Turn))


def test_export_of_a_user_has_all_that_is_held(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ada.jsonl"
    assert main(["export", "--user", ADA, "--output", str(path), "--dir", str(home)]) == 0
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    kinds = [row["record"] for row in rows]
    assert {k: kinds.count(k) for k in dict.fromkeys(kinds)} == {
        "turns": 6, "feedback": 3, "interactions": 3, "candidates": 1, "releases": 1,
    }  # fmt: skip
    assert OTHER not in path.read_text(encoding="utf-8")
    with Store.open(tmp_path / "copy.db") as copy:
        summary = import_file(copy, path)
        assert summary.stored == 9 and summary.rejected == {  # what is derived is made anew
            "derived_interactions": 3, "derived_candidates": 1, "derived_releases": 1,
        }  # fmt: skip
    capsys.readouterr()
    assert main(["export", "--user", "nobody", "--dir", str(home)]) == 2
    assert (
        main(["export", "--dir", str(home)]) == 2 and main(["export", "turns", "--user", ADA, "--dir", str(home)]) == 2
    )


def test_nothing_comes_back_by_importing_again(home: Path, tmp_path: Path) -> None:
    with Store.open(home / "afterword.db") as store:
        forget_user(store, ADA)
        before = store.counts()
        summary = import_file(store, tmp_path / "log.jsonl", "openai")
        assert (summary.stored, summary.forgotten, summary.duplicates) == (0, 9, 9)
        assert collect(store).stored == 0 and store.counts() == before
        out = io.BytesIO()
        export(store, "turns", "afterword", out)
        assert b"Byron" not in out.getvalue()


def test_what_others_said_too_is_no_finding(home: Path) -> None:
    with Store.open(home / "afterword.db") as store:
        mine = next(t for t in store.rows(Turn) if t.user == ADA)
        store.write(dataclasses.replace(mine, id="same-words", user=BOB, previous=None, conversation="else"))
        report = forget_user(store, ADA)
        assert report["clean"] and report["search"]["also_in_rows_of_others"] > 0
        assert store.find(Turn, "same-words") is not None


def test_an_id_that_an_event_quotes_is_nobodys_word(home: Path) -> None:
    with Store.open(home / "afterword.db") as store:
        mine = next(t for t in store.rows(Turn) if t.user == ADA)
        turn = dataclasses.replace(mine, id="chatcmpl-01a22eaefc00c3ccb9ebc549aafb", previous=None)
        quoted = {"inference_id": turn.id, "raw": f'{{"inference_id": "{turn.id}"}}'}
        store.write(turn, Feedback(id="quotes", turn=turn.id, kind="rating", value=1.0, user=ADA, metadata=quoted))
        report = forget_user(store, ADA)
        assert report["search"]["found"] == [] and report["clean"]


STEPS = ("rows become", "adapters are", "files are", "the database is", "every byte is")
KILLED = """
import os, signal, sys
from pathlib import Path
from afterword.forget import forget_user
from afterword.store import Store
def note(text):
    if text.startswith(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
with Store.open(Path(sys.argv[1])) as store:
    forget_user(store, sys.argv[3], note=note)
"""


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_any_step_is_mended_by_running_it_again(
    home: Path, step: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(home / "afterword.db"), step, ADA], check=False, env=dict(os.environ)
    )
    assert done.returncode == -signal.SIGKILL
    assert len(list((home / "forget").glob("*.pending"))) == 1
    assert (next((home / "forget").glob("*.pending")).stat().st_mode & 0o077) == 0
    code, report = run(home, "forget", "--user", ADA, capsys=capsys)
    assert code == 0 and report["clean"] and report["search"]["needles"] >= 4
    assert left(home, *TRACES) == []
    assert (len(report["rows"]["turns"]), len(report["rows"]["feedback"])) == (6, 3)
    assert sorted(Path(name).name for name in report["files"]) == [
        "cache", "cut-off", "k2", "log.jsonl.jsonl", "notes.json", "odd", "report.html",
    ]  # fmt: skip
    with Store.open(home / "afterword.db") as store:
        assert len(store.erasures()) == 1 and store.count(Release) == 4 and store.count(Turn) == 6
    path = str(home / "forget" / f"{report['erasure']}.json")
    assert run(home, "forget", "--check", path, "--user", ADA, capsys=capsys)[0] == 0


@pytest.mark.parametrize("work", ["train", "evaluate"])
def test_an_erasure_waits_for_what_reads_the_rows(home: Path, work: str) -> None:
    """A run that goes on would write their words into files that were cleaned."""
    with Store.open(home / "afterword.db") as store:
        turns = store.count(Turn, user=ADA)
        with ThreadPoolExecutor(1) as beside, alone(home, work, "a training run"):
            with pytest.raises(ConflictError, match="a training run works on"):
                beside.submit(forget_user, store, ADA).result()
            assert store.count(Turn, user=ADA) == turns > 0
        assert forget_user(store, ADA)["clean"]


def test_rejects_of_a_json_file_stay_lines_for_the_next_erasure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rows of `chats.json` that were rejected lie in `chats.json.jsonl`, which is JSON lines."""
    good = [{"role": "user", "content": "Hi there"}, {"role": "assistant", "content": "Hello"}]
    rows = [{"messages": m, "user": u} for m, u in ((good, "bob-bobson"), ("x", "bob-bobson"), ("y", "carl-carlson"))]
    (tmp_path / "chats.json").write_bytes(orjson.dumps(rows))
    home = ["--dir", str(tmp_path / "data")]
    assert main(["import", str(tmp_path / "chats.json"), *home]) == 0
    rejects = tmp_path / "data" / "rejects" / "chats.json.jsonl"
    assert main(["forget", "--user", "bob-bobson", *home]) == 0
    (left,) = [orjson.loads(line) for line in rejects.read_bytes().splitlines()]
    assert "carl-carlson" in str(left) and "bob-bobson" not in str(left)
    with rejects.open("ab") as damaged:
        damaged.write(b"{half a line\n")
    assert main(["forget", "--user", "carl-carlson", *home]) == 0
    assert not rejects.exists() or b"carl-carlson" not in rejects.read_bytes()
    assert "Traceback" not in capsys.readouterr().err
