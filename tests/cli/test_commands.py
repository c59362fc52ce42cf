"""The command line as a user meets it: exit codes, JSON on stdout and nothing else there, errors that help."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from afterword.cli import main
from afterword.records import Candidate, Feedback, Interaction, Turn, Verdict
from afterword.store import Store


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A data directory with two turns and some feedback."""
    path = tmp_path / "data"
    with Store.open(path / "afterword.db") as store:
        for n, said in ((1, "Shorter, please."), (2, "Thanks!")):
            turn = Turn(
                id=f"chatcmpl-{n}",
                messages=({"role": "user", "content": "Why is the [red]sky[/] blue?"},),
                answer={"role": "assistant", "content": "Because of Rayleigh scattering. " * 5},
                prompt_ids=(1, 2, 3),
                completion_ids=(4, 5),
                finish_reason="stop",
                user="ada",
                conversation=f"c{n}",
            )
            store.write(turn, Feedback(id=f"fb-{n}", turn=turn.id, kind="follow_up", text=said, source="detector"))
    return path


def _json(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    data = json.loads(capsys.readouterr().out)
    assert isinstance(data, dict)
    return data


def test_global_flags_work_before_and_after_the_command(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dir", str(home), "--json", "status"]) == 0
    before = _json(capsys)
    assert main(["status", "--dir", str(home), "--json"]) == 0
    after = _json(capsys)
    assert before == after
    assert (before["turns"], before["feedback"], before["interactions"]) == (2, 2, 0)
    assert {"skips", "candidates", "releases"} <= before.keys()


def test_the_home_comes_from_the_environment(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFTERWORD_HOME", str(home))
    assert main(["status", "--json"]) == 0
    assert _json(capsys)["turns"] == 2


def test_collect_prints_its_funnel_and_does_nothing_twice(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collect", "--dir", str(home), "--json"]) == 0
    funnel = _json(capsys)
    assert funnel["feedback"] == 2
    with Store.open(home / "afterword.db") as store:
        hindsights = [i.hindsight for i in store.rows(Interaction)]
        counts = store.counts()
    assert "Shorter, please." in hindsights
    assert main(["collect", "--dir", str(home)]) == 0
    assert "new feedback looked at" in capsys.readouterr().out
    with Store.open(home / "afterword.db") as store:
        assert store.counts() == counts


def test_collect_does_not_look_at_what_was_learned_for_each_interaction(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    spent = Store.spent

    def noted(store: Store, channel: str = "default") -> set[str]:
        asked.append(channel)
        return spent(store, channel)

    monkeypatch.setattr(Store, "spent", noted)
    rows = [
        Interaction(id=f"i{n}", turn=f"chatcmpl-{n}", feedback=(f"fb-{n}",), kind="follow_up", hindsight="Shorter.",
                    polarity=-1, weight=1.0, split="train") for n in (1, 2)
    ]  # fmt: skip
    with Store.open(home / "afterword.db") as store:
        store.write(*rows)
    assert main(["collect", "--dir", str(home)]) == 0
    several = len(asked)
    with Store.open(home / "afterword.db") as store:
        store.write(*(replace(row, id=f"{row.id}-again", feedback=(f"{row.id}-again",)) for row in rows))
    asked.clear()
    assert main(["collect", "--dir", str(home)]) == 0
    assert 0 < len(asked) == several


def test_lists_and_shows_rows_without_reading_markup_in_them(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["turns", "list", "--dir", str(home)]) == 0
    assert "[red]sky[/]" in capsys.readouterr().out
    assert main(["turns", "show", "chatcmpl-1", "--dir", str(home), "--json"]) == 0
    assert {"turns", "feedback"} <= _json(capsys).keys()
    main(["collect", "--dir", str(home), "--quiet"])
    capsys.readouterr()
    assert main(["interactions", "list", "--dir", str(home), "--json"]) == 0
    rows = _json(capsys)["interactions"]
    assert isinstance(rows, list)
    assert main(["interactions", "show", rows[0]["id"][:8], "--dir", str(home)]) == 0
    assert "hindsight" in capsys.readouterr().out or rows[0]["hindsight"] == ""


@pytest.mark.parametrize("command", [["turns", "show", "nothing"], ["candidates", "show", "x"], ["heatmap", "x"]])
def test_an_unknown_id_is_named(home: Path, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    assert main([*command, "--dir", str(home), "--json"]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["type"] == "not_found_error"
    assert repr(command[-1]) in captured.err and "List them with" in captured.err


def test_a_page_that_cannot_be_written_is_refused_before_the_model_is_loaded(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for where in (tmp_path / "no" / "map.html", tmp_path):
        assert main(["heatmap", "x", "--dir", str(home), "--html", str(where)]) == 2
        assert f"cannot write {str(where)!r}" in capsys.readouterr().err


def test_export_gives_what_import_takes(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "turns.jsonl"
    assert main(["export", "turns", "--dir", str(home), "--output", str(out)]) == 0
    other = tmp_path / "other"
    assert main(["import", str(out), "--format", "afterword", "--dir", str(other), "--json"]) == 0
    capsys.readouterr()
    assert main(["status", "--dir", str(other), "--json"]) == 0
    assert _json(capsys)["turns"] == 2


def test_an_import_says_when_nothing_came_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad, good = tmp_path / "bad.jsonl", tmp_path / "good.jsonl"
    bad.write_text('{"messages": [{"role": "King", "content": null}]}\n' * 3, encoding="utf-8")
    good.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n')
    command = ["import", "--dir", str(tmp_path / "data")]
    assert main([*command, str(bad)]) == 2
    said = capsys.readouterr().err
    assert "all 3 rows" in said and '(line 1) because not a message with a known role: {"role": "King"' in said
    assert str(Path("rejects") / "bad.jsonl.jsonl") in said and "Next:" not in said and "None" not in said
    rejects = (tmp_path / "data" / "rejects" / "bad.jsonl.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(json.loads(row)["row"])["messages"][0]["role"] for row in rejects] == ["King"] * 3
    assert main([*command, str(good)]) == 0
    assert "Next:" in capsys.readouterr().err
    assert main([*command, str(good)]) == 0
    said = capsys.readouterr().err
    assert "Nothing new" in said and "Next:" not in said
    assert main([*command, str(bad), str(good)]) == 1


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        (["train"], 4, "interactions wait to be learned"),
        (["evaluate"], 4, "run `afterword train` first"),
        (["release", "publish"], 4, "run `afterword train` first"),
        (["release", "rollback"], 4, "base model"),
        (["release", "publish", "--override", "ada"], 2, "needs --why REASON"),
        (["import", "/nowhere/x.json"], 2, "/nowhere/x.json"),
        (["status", "--config", "/nowhere.toml", "--set", "x"], 0, ""),
        (["config", "show", "--set", "serve.port"], 2, "has no '='"),
        (["config", "show", "--set", "serve.prot=1"], 2, "Did you mean 'serve.port'"),
        (["train", "--recipe", "sdpo"], 4, "interactions"),
        (["simulate", "--persona", "greting"], 2, "greeting"),
        (["simulate"], 2, "no gateway runs"),
        (["simulate", "--personas", "brief,,spanish"], 2, "'brief,,spanish' has an empty name"),
        (["simulate", "--personas", "all,brief"], 2, "`all` stands alone"),
        (["simulate", "--personas", "brief,brief"], 2, "two personas are called 'brief'"),
        (["simulate", "--tasks", "question,"], 2, "--tasks 'question,' has an empty name"),
        (["keys", "revoke", "nope"], 2, "nope"),
        (["serve", "--host", "0.0.0.0", "--port", "0"], 2, "keys create"),
    ],
)
def test_what_cannot_be_done_says_why_and_what_to_do(
    home: Path, capsys: pytest.CaptureFixture[str], command: list[str], code: int, says: str
) -> None:
    assert main([*command, "--dir", str(home)]) == code
    assert says in " ".join(capsys.readouterr().err.split())


def test_a_directory_without_data_is_not_made_by_reading(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--dir", str(tmp_path / "none")]) == 2
    assert "afterword serve" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_usage_errors_exit_with_two() -> None:
    for arguments in (["nonsense"], ["turns", "show"], ["export", "nonsense"]):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert exit_.value.code == 2


def test_publish_says_what_the_gate_said(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store.open(home / "afterword.db") as store:
        store.write(Candidate(id="cand-1", path="adapters/cand-1", base="m", parent=None, interactions=(), recipe={}))
    assert main(["release", "publish", "--dir", str(home)]) == 4
    assert "afterword evaluate cand-1" in capsys.readouterr().err
    with Store.open(home / "afterword.db") as store:
        store.write(Verdict(id="v", candidate="cand-1", report="r", passed=False, reasons=("holdout: not better",)))
    assert main(["release", "publish", "--dry-run", "--dir", str(home)]) == 3
    assert "holdout: not better" in capsys.readouterr().out
    assert main(["release", "publish", "--dir", str(home)]) == 3


def test_keys_are_shown_once(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "create", "ci", "--scope", "feedback", "--dir", str(home), "--json"]) == 0
    made = _json(capsys)
    assert str(made["key"]).startswith("sk-")
    assert main(["keys", "list", "--dir", str(home), "--json"]) == 0
    listed = capsys.readouterr().out
    assert str(made["id"]) in listed and str(made["key"]) not in listed
    assert main(["keys", "revoke", str(made["id"]), "--dir", str(home)]) == 0


def test_config_shows_each_source(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "afterword.toml").write_text("[serve]\nport = 8500\n", "utf-8")
    assert main(["config", "show", "--sources", "--json", "--dir", str(home), "--set", "train.seed=3"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["serve.port"] == {"value": 8500, "source": "file afterword.toml"}
    assert shown["train.seed"] == {"value": 3, "source": "--set"}
    assert shown["gate.min_interactions"]["source"] == "default"


def test_doctor_checks_each_thing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--dir", str(home), "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert all(check["ok"] for check in checks) and {"database", "packages"} <= {check["name"] for check in checks}
    (home / "afterword.db").write_bytes(b"this is not a database" * 100)
    assert main(["doctor", "--dir", str(home)]) == 1
    assert "FAIL" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["trian"], "no command 'trian': did you mean 'train'? `afterword --help`"),
        (["turns", "shwo"], "no command 'shwo': did you mean 'show'? `afterword turns --help`"),
        (["zzz"], "no command 'zzz': it is one of demo, serve"),
        (["collect", "--jsn"], "'--jsn' is not understood here: did you mean '--json'?"),
        (["cycle", "--watch", "--every", "20"], "'--every' is not understood here. `afterword cycle --help`"),
        (["turns", "show"], "'turns show' needs id."),
        (["train", "--lr", "much"], "argument --lr: invalid float value: 'much'."),
    ],
)
def test_what_was_typed_wrong_is_said_in_a_sentence(
    typed: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(typed)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and says in said and "usage:" not in said


@pytest.mark.parametrize("group", ["turns", "interactions", "recipes", "keys", "review", "release", "config"])
def test_a_group_alone_lists(group: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verb = {"release": "status", "config": "show"}.get(group, "list")
    assert main([group, verb, "--json", "--dir", str(home)]) == 0
    listed = capsys.readouterr().out
    assert main([group, "--json", "--dir", str(home)]) == 0
    assert capsys.readouterr().out == listed != ""


def test_doctor_looks_at_the_first_folder_that_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--dir", str(tmp_path / "not" / "yet")]) == 0
    assert "is writable" in capsys.readouterr().out and not (tmp_path / "not").exists()


REFUSED = [
    ("canary.min_users=1", "canary.min_users = 1 is invalid: Input should be greater than or equal to 2"),
    ("canary.min_users=-1", "canary.min_users = -1"),
    ("canary.share=2.0", "canary.share = 2.0"),
    ("drift.window=-5", "drift.window = -5"),
    ("collect.holdout=2", "collect.holdout = 2"),
    ("gate.min_ifeval=NaN", "gate.min_ifeval"),
    ("train.recipe=nope", "unknown recipe 'nope'"),
    ("train.options.foo=1", "takes no 'foo'"),
    ("train.verifier=nosuch:thing", "the verifier 'nosuch:thing' cannot be imported"),
    ("train.revise=target", "learns from a teacher"),
    ('evaluate.suites=["holdot"]', "unknown suite 'holdot'"),
    ('evaluate.checks={"sums": "jsn"}', "evaluate.checks has 'jsn'"),
]


@pytest.mark.parametrize(("setting", "says"), REFUSED)
def test_settings_that_a_later_command_refuses_are_refused_at_once(
    setting: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--dir", str(tmp_path), "--set", setting]
    assert main(["doctor", "--json", *where]) == 1
    checks = json.loads(capsys.readouterr().out)["checks"]
    (failed,) = [check for check in checks if not check["ok"]]
    assert failed["name"] == "settings" and says in failed["detail"]
    assert main(["config", "show", "--json", *where]) == 2
    assert says in json.loads(capsys.readouterr().out)["error"]["message"]
    assert main(["config", "show", "--sources", *where]) == 2
    shown = capsys.readouterr()
    name = setting.partition("=")[0].removesuffix(".foo")
    assert says in " ".join(shown.err.split())
    assert any(line.split()[0] == name and line.endswith("--set") for line in map(str.rstrip, shown.out.splitlines()))


def test_doctor_names_every_setting_that_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ("canary.alpha=5", "drift.window=-5", "train.recipe=nope")
    pairs = [word for pair in wrong for word in ("--set", pair)]
    assert main(["doctor", "--dir", str(tmp_path), *pairs]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "settings:" in line]
    assert "FAIL" in line and all(part in line for part in ("canary.alpha = 5", "drift.window = -5", "recipe 'nope'"))


def test_doctor_goes_on_after_a_setting_that_there_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--dir", str(tmp_path), "--set", "canary.shar=0.1", "--json"]) == 1
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert "Did you mean 'canary.share'" in checks["settings"]["detail"] and checks["gateway"]["ok"]


def test_settings_that_can_be_used_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--dir", str(tmp_path), "--set", "train.recipe=sft", "--set", "canary.min_users=2"]
    assert main(["doctor", *where]) == 0
    assert "2 changed from their defaults: train.recipe, canary.min_users" in capsys.readouterr().out
    assert main(["config", "show", "--json", *where]) == 0
    assert json.loads(capsys.readouterr().out)["train.recipe"]["value"] == "sft"
