"""Settings: precedence, sources, and errors that name the key, the value and the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from afterword.config import BUILT_IN, Config, ServeConfig, TrainConfig, current_names, resolve
from afterword.errors import ConfigError


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "afterword.toml"
    path.write_text(text, encoding="utf-8")
    return path


def _source(config: Config, key: str) -> tuple[object, str]:
    return next((value, source) for name, value, source in config.rows() if name == key)


def test_defaults_are_the_dataclass_defaults() -> None:
    config = resolve(BUILT_IN)
    assert config.get(ServeConfig) == ServeConfig()
    assert config.get(TrainConfig) == TrainConfig()
    assert {source for _, _, source in config.rows()} == {"default"}


def test_an_empty_variable_is_unset() -> None:
    config = resolve(BUILT_IN, environ={"AFTERWORD_SERVE_UPSTREAM": "", "AFTERWORD_SERVE_PORT": ""})
    assert config.get(ServeConfig) == ServeConfig()


def test_flags_beat_environment_beats_file_beats_default(tmp_path: Path) -> None:
    file = _file(tmp_path, '[serve]\nport = 1\nname = "file"\nhost = "::1"\n')
    config = resolve(
        BUILT_IN,
        file=file,
        environ={"AFTERWORD_SERVE_PORT": "2", "AFTERWORD_SERVE_NAME": "env", "AFTERWORD_HOME": "/x", "PATH": "/bin"},
        flags={"serve.port": (3, "--port")},
    )
    assert config.get(ServeConfig) == ServeConfig(port=3, name="env", host="::1")
    assert _source(config, "serve.port") == (3, "--port")
    assert _source(config, "serve.name") == ("env", "environment AFTERWORD_SERVE_NAME")
    assert _source(config, "serve.host") == ("::1", "file afterword.toml")
    assert _source(config, "serve.dtype") == ("auto", "default")


def test_text_values_are_read_as_the_field_wants() -> None:
    environ = {
        "AFTERWORD_TRAIN_OFF_POLICY": "true",
        "AFTERWORD_SERVE_NAME": "7",
        "AFTERWORD_TRAIN_LEARNING_RATE": "2e-4",
    }
    config = resolve(BUILT_IN, environ=environ)
    assert config.get(TrainConfig).off_policy is True
    assert config.get(TrainConfig).learning_rate == pytest.approx(2e-4)
    assert config.get(ServeConfig).name == "7"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[serve]\nprot = 1\n", "Did you mean 'serve.port'"),
        ("port = 1\n", "is outside a section"),
        ('[serve]\nport = "many"\n', "serve.port = 'many'"),
        ("[serve]\nport = true\n", "serve.port = True"),
        ("[serve\n", "is not valid TOML"),
        ("[nowhere]\nx = 1\n", "unknown setting 'nowhere.x'"),
    ],
)
def test_a_bad_file_is_refused_with_the_reason(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace("(", r"\(")):
        resolve(BUILT_IN, file=_file(tmp_path, text))


def test_a_missing_file_and_an_unknown_variable_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        resolve(BUILT_IN, file=tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r"unknown setting 'serve.prot' \(from environment AFTERWORD_SERVE_PROT\)"):
        resolve(BUILT_IN, environ={"AFTERWORD_SERVE_PROT": "1"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("serve.max_batch", 0), ("serve.port", 99999), ("serve.port", -1), ("serve.dtype", "int4"),
        ("serve.device", "tpu"), ("serve.upstream_timeout", 0), ("train.min_interactions", -1),
        ("train.max_interactions", 0), ("train.max_revisions", -1), ("evaluate.looks", 0),
        ("evaluate.judge_timeout", -1), ("evaluate.ifeval_prompts", 0), ("cycle.interval", 0),
        ("cycle.interval", float("inf")),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_used_is_refused_by_name(key: str, value: float | str) -> None:
    with pytest.raises(ConfigError, match=rf"{key} = {value!r} .*is invalid"):
        resolve(BUILT_IN, flags={key: (value, "--set")})


def test_one_entry_of_a_table_adds_to_the_file(tmp_path: Path) -> None:
    file = _file(tmp_path, "[train.options]\nbeyond = 0.25\nbatch = 2\n")
    flags = {"train.options.batch": ("8", "--set"), "train.options.teacher": ("base", "--set")}
    config = resolve(BUILT_IN, file=file, flags=flags)
    assert config.get(TrainConfig).options == {"beyond": 0.25, "batch": 8, "teacher": "base"}
    assert _source(config, "train.options")[1] == "file afterword.toml, --set"
    alone = resolve(BUILT_IN, flags={f"evaluate.checks.{task}": ("python", "--set") for task in ("code", "sums")})
    assert _source(alone, "evaluate.checks") == (dict.fromkeys(("code", "sums"), "python"), "--set")
    assert TrainConfig().options == {} == resolve(BUILT_IN).get(TrainConfig).options
    whole = resolve(BUILT_IN, file=file, environ={"AFTERWORD_TRAIN_OPTIONS": '{"hold": 1}'})
    assert whole.get(TrainConfig).options == {"hold": 1}


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("train.option.beyond", 1, "unknown setting 'train.option.beyond'.*Did you mean 'train.options'"),
        ("train.recipe.beyond", 1, "unknown setting"),
        ("train.options.", 1, "unknown setting"),
        ("train.options", 3, "train.options = 3 .*is invalid"),
        ("evaluate.checks.code", 3, "evaluate.checks.code = .*is invalid"),
    ],
)
def test_an_entry_of_what_is_no_table_is_refused(key: str, value: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        resolve(BUILT_IN, flags={key: (value, "--set")})


def test_a_renamed_setting_is_read_under_its_old_name_with_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "afterword.toml"
    file.write_text("[train]\npasses = 3\n", encoding="utf-8")
    ways: list[dict[str, Any]] = [
        {"file": file}, {"environ": {"AFTERWORD_TRAIN_PASSES": "3"}}, {"flags": {"train.passes": ("3", "--set")}},
    ]  # fmt: skip
    for way in ways:
        with pytest.warns(FutureWarning, match=r"train.passes \(from .*\) is now called train.epochs"):
            assert resolve({"train": TrainConfig}, **way).get(TrainConfig).epochs == 3
    file.write_text("[train]\npasses = 3\nepochs = 2\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"train.passes and train.epochs \(both from file afterword.toml\) are one"):
        resolve({"train": TrainConfig}, file=file)
    file.write_text("[train]\nepochs = 2\npasses = 3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="are one setting"):
        resolve({"train": TrainConfig}, file=file)
    assert current_names("train", {"passes": 2, "fresh": 0}) == {"epochs": 2, "fresh": 0}
