"""API keys: made once, kept as a hash, recognised, scoped, revoked."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import validate
from cluster.errors import ConfigError, DataError
from jobs.cli import cli
from serve.config import ServeConfig
from serve.keys import KeyFile, Keyring, new_key, parse_keys


def test_a_key_is_shown_once_and_kept_as_a_hash(tmp_path: Path) -> None:
    token, key = new_key("team a", models=["reconcile"])
    assert re.fullmatch(r"dk-[0-9a-f]{8}-[A-Za-z0-9_-]{43}", token)
    assert key.sha256 == hashlib.sha256(token.encode()).hexdigest()
    KeyFile(str(tmp_path)).add(key)
    kept = (tmp_path / "keys.json").read_text()
    assert token not in kept
    assert token.rsplit("-", 1)[1] not in kept
    assert Keyring(KeyFile(str(tmp_path)).read()).find(token) == key


def test_what_is_not_the_very_key_is_nobody(tmp_path: Path) -> None:
    token, key = new_key("team a")
    ring = Keyring({key.id: key})
    forged = token[:-1] + ("A" if token[-1] != "A" else "B")
    for wrong in ["", "dk-", forged, token + "x", token.upper(), f"dk-00000000-{token[12:]}", " "]:
        assert ring.find(wrong) is None
    assert ring.find(token) is key


@given(st.text(max_size=80))
def test_no_text_is_a_key_or_an_error(text: str) -> None:
    assert Keyring().find(text) is None


def test_expired_and_revoked_keys_are_nobody(tmp_path: Path) -> None:
    soon = datetime.now(UTC) + timedelta(hours=1)
    token, key = new_key("team a", expires=soon)
    ring = Keyring({key.id: key})
    assert ring.find(token) is key
    assert ring.find(token, now=soon.timestamp() + 1) is None
    file = KeyFile(str(tmp_path))
    file.add(key)
    file.revoke(key.id)
    assert Keyring(file.read()).find(token) is None


def test_a_scope_covers_names_or_single_versions() -> None:
    _, key = new_key("team a", models=["reconcile", "tag-*", "extract@v2"])
    assert key.may_use("reconcile")
    assert key.may_use("reconcile@v9")
    assert key.may_use("tag-invoices@canary")
    assert key.may_use("extract@v2")
    assert not key.may_use("extract")
    assert not key.may_use("extract@v3")
    assert not key.may_use("reconcile2")


def test_a_key_that_is_not_there_cannot_be_revoked(tmp_path: Path) -> None:
    _, key = new_key("team a")
    KeyFile(str(tmp_path)).add(key)
    with pytest.raises(DataError, match=rf"known: {key.id} \(team a\)"):
        KeyFile(str(tmp_path)).revoke("00000000")


@pytest.mark.parametrize(
    "broken", [b"", b"[]", b'{"keys": 3}', b'{"keys": [{"id": "x"}]}', b"\xff"]
)
def test_a_broken_file_says_so_and_shows_no_hash(broken: bytes) -> None:
    with pytest.raises(DataError, match=r"keys\.json"):
        parse_keys(broken)


def test_the_command_line_makes_lists_and_revokes(tmp_path: Path) -> None:
    uri = str(tmp_path / "keys")
    limits = ["--requests-per-minute", "60", "--usd-per-day", "2.5", "--expires-days", "30"]
    made = CliRunner().invoke(cli, ["keys", "create", "team-a", "--keys", uri, *limits])
    token = made.output.splitlines()[0]
    (key,) = KeyFile(uri).read().values()
    assert Keyring({key.id: key}).find(token) == key
    assert (key.requests_per_minute, key.usd_per_day, key.models) == (60, 2.5, ["*"])
    listed = CliRunner().invoke(cli, ["keys", "list", "--keys", uri]).output
    assert key.id in listed
    assert token not in listed
    assert key.sha256 not in listed
    revoked = CliRunner().invoke(cli, ["keys", "revoke", key.id, "--keys", uri])
    assert "is revoked" in revoked.output
    assert KeyFile(uri).read()[key.id].revoked


def test_other_machines_need_keys() -> None:
    for host in ("0.0.0.0", "::", "10.1.2.3", "gateway.example.com", "127.evil.example"):
        with pytest.raises(ConfigError, match="distillery keys create"):
            validate(ServeConfig, {"host": host}, source="run.toml")
    ServeConfig(host="0.0.0.0", keys="keys")
    ServeConfig(host="0.0.0.0", allow_without_keys=True)
    for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost"):
        ServeConfig(host=host)


def test_a_certificate_needs_its_key() -> None:
    with pytest.raises(ConfigError, match=r"serve\.tls_cert needs serve\.tls_key"):
        validate(ServeConfig, {"tls_cert": "cert.pem"}, source="run.toml")


def test_an_origin_is_scheme_and_host() -> None:
    ServeConfig(cors_origins=["https://app.example.com", "http://localhost:3000", "*"])
    with pytest.raises(ConfigError, match=r"https://app\.example\.com"):
        validate(ServeConfig, {"cors_origins": ["app.example.com/x"]}, source="run.toml")
