"""Keys and passwords stay out of what a run leaves; planted runs are not resumed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from lit_distill._command.command import conf_dir
from lit_distill.runs import resume
from lit_distill.runs.artifacts import read_json, write_json
from lit_distill.runs.resume import differing_keys, find_resume_point, resolve_environment, write_config
from lit_distill.runs.secrets import REDACTED, is_secret, redacted, redacted_text

SECRET = "xyzzy-8f14e45f"


def composed(*typed: str) -> DictConfig:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", ["experiment=baseline_pptsmv2", "run_dir=/runs/x", *typed])
    resolve_environment(config, typed)
    return config


@pytest.mark.parametrize(
    "typed",
    [
        "+logger.wandb.api_key=${oc.env:WANDB_API_KEY}", f"+logger.wandb.api_key={SECRET}",
        "+logger.wandb={api_key: ${oc.env:WANDB_API_KEY}}", f"+logger.wandb={{settings: {{api_key: {SECRET}}}}}",
        "+logger.x.note=${oc.env:WANDB_API_KEY}", "+logger.x.note=a-${oc.env:WANDB_API_KEY}",
        f"+logger.x.password={SECRET}", f"+logger.x.Token={SECRET}", f"+logger.x.aws_secret={SECRET}",
        f"+data.root_url='s3://me:{SECRET}@bucket/x'", f"+logger.x.secrets=[{SECRET}]",
    ],
)  # fmt: skip
def test_a_secret_is_in_no_file_of_the_run(typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    config = composed(typed)
    write_config(tmp_path, config)
    assert SECRET not in (tmp_path / "config.yaml").read_text()
    assert differing_keys(tmp_path, config) == [], "the same command resumes the run"
    assert SECRET in OmegaConf.to_yaml(config, resolve=True), "what is built has it"


def test_what_is_no_secret_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOB_SEED", "7")
    config = composed("seed=${oc.env:JOB_SEED}")
    write_config(tmp_path, config)
    assert OmegaConf.load(tmp_path / "config.yaml") == config
    assert str(config.seed) == "7"
    assert "JOB_SEED" not in (tmp_path / "config.yaml").read_text()


def test_cards_and_records_hold_none(tmp_path: Path) -> None:
    card: dict[str, Any] = {
        "data": {"root": f"s3://me:{SECRET}@bucket", "storage": [{"access_key": SECRET}]}, "final": {"a": 0.5}
    }  # fmt: skip
    write_json(tmp_path / "card.json", card)
    text = (tmp_path / "card.json").read_text()
    assert SECRET not in text
    assert json.loads(text)["final"] == {"a": 0.5}
    assert SECRET not in redacted_text(f"train +logger.wandb.api_key={SECRET} '+x={{token: {SECRET}}}' seed=1")


def test_names_of_secrets() -> None:
    for name in (
        "WANDB_API_KEY",
        "api_key",
        "apikey",
        "token",
        "HF_TOKEN",
        "db.password",
        "passwd",
        "AWS_SECRET_ACCESS_KEY",
        "authToken",
        "clientSecret",
        "secretAccessKey",
        "PGPASSWORD",
        "Authorization",
        "secret_value",
    ):
        assert is_secret(name), name
    for name in ("key", "index_key", "tokens_per_clip", "root", "class_token_count", "monitor", "author"):
        assert not is_secret(name), name
    assert redacted({"token": "", "class_token": True}) == {"token": "", "class_token": True}


URLS = [
    "s3://me:p@{}@bucket/x", "s3://me:a/{}@bucket", "https://h/x?token={}", "https://h/x?a=1&api_key={}&b=2",
    "https://h/x?sv=2&sig={}%3D&x=1", "https://h/k?X-Amz-Signature={}", "https://h/k?X-Amz-Security-Token={}",
    "memory://x;password={}", "https://hooks.slack.com/services/T00/B00/{}", "postgresql://u:{}@db:5432/x",
    "https://h/x?key={}", "https://h/x?a=1&code={}", "https://h/x?pass={}", "https://h/x%3Ftoken%3D{}",
    "https://discord.com/api/webhooks/1/{}", "https://api.telegram.org/bot123456:{}AAAAAAAAAA/send",
]  # fmt: skip
TYPED = [
    "+x.headers.Authorization='Bearer {}'", "+x.authToken={}", "+x.pwd={}", "PGPASSWORD={} train", "train --token {} a",
    "+x.auth={}", "+x.clientSecret={}", "+x.secretAccessKey={}", "+x.cookie={}", "+x.api_key_wandb={}",
    "'+x.password=a {}'", '+x.password="a {}"', "+x={{password:{}}}", "+x.aws_access_key_id={}",
    "+x.connection_string='AccountKey={};'", "+x.connection_string={}", "+x.db.pass={}", "+x.pw={}", "+x.otp={}",
    "+x.gh_pat={}", "+x.subscription-key={}", "+x.license_key={}", "+x.ssh_key={}", "+x.sentry.dsn={}",
    "+x.webhook_url={}", 'note={{\\"api_key\\": \\"{}\\"}}', "curl -H 'Bearer {}'",
]  # fmt: skip


@pytest.mark.parametrize("text", [*URLS, *TYPED])
def test_a_text_holds_none(text: str) -> None:
    made = redacted_text(text.format(SECRET))
    assert SECRET not in made
    assert redacted_text(made) == made
    for url in URLS if text in URLS else ():
        assert SECRET not in str(redacted({"data": {"roots": [url.format(SECRET)]}}))


@pytest.mark.parametrize(
    "text",
    [
        "model.reg_tokens=4", "+model.class_token=true", "model.author=me", "token=null", "a.token=${b.token}",
        "https://host:8080/x@v1", "https://host/x?size=3&v=1", "data.root=/data/a@b:c", "seed=7", "password=???",
    ],
)  # fmt: skip
def test_a_text_without_any_stays(text: str) -> None:
    assert redacted_text(text) == text


@pytest.mark.parametrize(
    "value",
    [f"hf_{'a1B2' * 8}", f"ghp_{'a1B2' * 9}", f"sk-{'a1B2' * 9}", "AKIAABCDEFGHIJKLMNOP", f"AIza{'a1B2' * 9}",
     "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc-DEF"],
)  # fmt: skip
def test_a_key_of_a_known_form_needs_no_name(value: str) -> None:
    assert value not in str(redacted({"note": f"x {value} y", "list": [value]}))
    assert value not in redacted_text(f"train +note={value} seed=1")


@pytest.mark.parametrize(
    ("name", "value"),
    [("key", "a1B2" * 6), ("Key", "a1B2/+" * 5 + "="), ("session", "0123456789abcdef" * 2),
     ("key", "01234567-89ab-cdef-0123-456789abcdef"), ("pin", "2846")],
)  # fmt: skip
def test_a_name_of_many_uses_is_of_a_secret_by_its_value(name: str, value: str) -> None:
    assert redacted({"x": {name: value}}) == {"x": {name: REDACTED}}
    assert redacted_text(f"train +x.{name}={value} seed=1") == f"train +x.{name}={REDACTED} seed=1"
    assert value not in redacted_text(f"train '+x={{{name}: {value}}}'")


@pytest.mark.parametrize(
    ("name", "value"),
    [("key", "val/Student/top1"), ("key", "resnet50_imagenet1k_v2"), ("key", "clip_000001"), ("session", "2026-11-30"),
     ("monkey", "a1B2" * 6), ("pin", "true"), ("pin", 1), ("max_tokens", 2_000_000), ("token", 4), ("seed", 12345678)],
)  # fmt: skip
def test_a_name_of_many_uses_keeps_what_is_none(name: str, value: str | int) -> None:
    assert redacted({"x": {name: value}}) == {"x": {name: value}}
    assert redacted_text(f"train x.{name}={value} a=1") == f"train x.{name}={value} a=1" or name == "max_tokens"


@pytest.mark.parametrize(
    "word",
    ["password", "token=", "://:", "eyJ-", "eyJaaaaaaaa.", "=key=key", "api_key", "--token ", "auth ", "'token=\\"],
)
def test_a_long_text_takes_no_time(word: str) -> None:
    text = word * (50_000 // len(word))
    begin = time.thread_time()
    redacted_text(text)
    assert time.thread_time() - begin < 1  # 3 to 30 without a bound


def test_a_password_may_be_a_number() -> None:
    assert redacted({"password": 12345678, "pin": 2846}) == {"password": REDACTED, "pin": REDACTED}


def test_a_value_of_the_environment_needs_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", SECRET)
    monkeypatch.setenv("SHORT_TOKEN", "run")
    assert redacted({"a": f"x/{SECRET}/y", "runs": "run"}) == {"a": "x/<redacted>/y", "runs": "run"}
    assert redacted_text(f"train +note={SECRET} run") == "train +note=<redacted> run"


@pytest.mark.parametrize("name", ["PWD", "OLDPWD", "SIGNING_KEY", "APP_SECRET"])
def test_a_place_of_the_environment_is_no_secret(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, str(tmp_path))
    tree = {"pretrained": f"{tmp_path}/student.safetensors"}
    assert redacted(tree) == tree
    assert redacted_text(f"run={tmp_path}/x") == f"run={tmp_path}/x"


@pytest.mark.parametrize("name", ["COMET_KEY", "GH_PAT", "DB_PASS", "SENTRY_DSN"])
def test_a_value_of_the_environment_is_known_as_it_is_written(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, 'a b/c"d1')
    assert redacted({"x": 'a b/c"d1', "y": "a%20b%2Fc%22d1", 'a b/c"d1': 1}) == {
        "x": "<redacted>", "y": "<redacted>", "<redacted>": 1
    }  # fmt: skip
    assert redacted_text(json.dumps({"x": 'a b/c"d1'})) == '{"x": "<redacted>"}'


def begun(folder: Path, config: DictConfig) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    write_config(folder, config)
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"x")
    return folder


def found(folder: Path, config: DictConfig) -> str:
    return find_resume_point(config, folder / "2026-01-01", siblings=True).message


def test_a_planted_run_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = composed()
    planted = begun(tmp_path / "2026-12-01", config)
    with pytest.raises(ValueError, match=r"last\.ckpt"):
        found(tmp_path, config)  # it would be read
    monkeypatch.setattr(resume, "_is_ours", lambda path, among: path != planted / "checkpoints" / "last.ckpt")
    assert "no unfinished run" in found(tmp_path, config)


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("part", [".", "config.yaml", "checkpoints", "checkpoints/last.ckpt"])
def test_a_run_of_another_user_is_not_resumed(part: str, tmp_path: Path) -> None:
    config = composed()
    os.chown(begun(tmp_path / "2026-12-01", config) / part, 12345, 12345)
    assert "no unfinished run" in found(tmp_path, config)


@pytest.mark.parametrize("part", [".", "config.yaml", "checkpoints", "checkpoints/last.ckpt"])
def test_a_run_that_is_a_link_is_not_resumed(part: str, tmp_path: Path) -> None:
    config = composed()
    run = begun(tmp_path / "2026-12-01", config)
    target = tmp_path / "elsewhere" / "x"
    target.parent.mkdir()
    (run / part).resolve().rename(target)
    (run / part if part != "." else run).symlink_to(target)
    assert "no unfinished run" in found(tmp_path, config)


@pytest.mark.parametrize(
    ("name", "text"),
    [("config.yaml", "a: &a [x]\nb: *a\n"), ("config.yaml", "[" * 99_999),
     ("config.yaml", "\x00"), ("config.yaml", "[]"), ("results.json", "{" * 9_999), ("results.json", "[1]"),
     ("results.json", '{"a": 1, "a": 2}')],
)  # fmt: skip
def test_a_run_that_cannot_be_read_stops_no_other(name: str, text: str, tmp_path: Path) -> None:
    config = composed()
    (begun(tmp_path / "2026-12-01", config) / name).write_text(text)
    assert "no unfinished run" in found(tmp_path, config)


def test_a_json_file_is_an_object(tmp_path: Path) -> None:
    assert read_json(tmp_path / "none.json") == {}
    for text in ("[1]", '{"a": 1, "a": 2}', "[" * 99_999, "nul", '"x"'):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(ValueError, match="refused"):
            read_json(tmp_path / "a.json")
