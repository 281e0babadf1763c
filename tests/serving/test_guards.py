"""Who may ask, and how much of a request is read."""

import re

import pytest
from typer.testing import CliRunner

from specblock.cli.main import app
from specblock.errors import ConfigError
from specblock.serving.http.guards import Keys
from specblock.serving.page import Page
from specblock.serving.settings import ServingConfig
from tests.serving.conftest import asked

CHAT = "/v1/chat/completions"
OPEN, GUARDED = ("/", "/health"), ("/metrics", "/status", "/v1/models", "/v1/models/tiny")


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text("first-key\n\n  second-key  \r\n")
    return path


def test_keys(started, keys):
    server = started(keys=keys)
    for path in OPEN:
        assert server.get(path).status_code == 200
    for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "first-key"},
                   {"Authorization": "Basic first-key"}, {"Authorization": "Bearer "}):  # fmt: skip
        for path in GUARDED:
            found = server.get(path, headers=header)
            assert found.status_code == 401
            assert found.json()["error"]["code"] == "invalid_api_key"
        assert server.post(CHAT, asked(), headers=header).status_code == 401
    for key in ("first-key", "second-key"):
        header = {"Authorization": f"Bearer {key}"}
        assert server.post(CHAT, asked(), headers=header).status_code == 200
        for path in GUARDED:
            assert server.get(path, headers=header).status_code == 200


def test_files_of_keys_that_are_none(tmp_path):
    assert not Keys(None)
    (tmp_path / "empty").write_text("\n \n")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xfd")
    (tmp_path / "foreign").write_text("plain\nschlüssel\n", encoding="utf-8")
    for name in ("empty", "bytes", "absent", "foreign"):
        with pytest.raises(ConfigError, match=name):
            Keys(tmp_path / name)


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:8000", 200), ("localhost", 200), ("[::1]:8000", 200), ("LOCALHOST:1", 200),
     ("evil.example", 403), ("127.0.0.1.evil.example:8000", 403), ("", 403)],
)  # fmt: skip
def test_other_names_are_refused_where_only_this_machine_can_ask(started, host, status):
    assert started().get("/v1/models", headers={"Host": host}).status_code == status


def test_any_name_serves_an_address_that_others_reach(started):
    server = started(host="0.0.0.0")
    assert server.get("/v1/models", headers={"Host": "name.example"}).status_code == 200
    assert [ServingConfig(host=host).loopback for host in ("127.0.0.9", "::1", "localhost")] == [
        True
    ] * 3
    assert not any(ServingConfig(host=host).loopback for host in ("0.0.0.0", "::", "name"))


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_what_any_web_page_may_send_is_refused(tiny, kind):
    header = {} if kind is None else {"Content-Type": kind}
    found = tiny.run(lambda client: client.post(CHAT, content=b"{}", headers=header))
    assert found.status_code == 415
    assert "access-control-allow-origin" not in found.headers


def test_a_body_is_read_no_further_than_its_limit(started):
    server, sent = started(max_body_mib=0.01), []

    async def parts():
        for _ in range(1000):
            sent.append(1)
            yield b" " * 1000

    header = {"Content-Type": "application/json"}
    found = server.run(lambda client: client.post(CHAT, content=parts(), headers=header))
    assert found.status_code == 413
    assert len(sent) < 15
    found = server.run(lambda c: c.post(CHAT, content=b"{" + b" " * 20_000, headers=header))
    assert found.status_code == 413
    assert found.headers["connection"] == "close"


def test_the_page_runs_nothing_but_its_own():
    page = Page("<style>a{}</style><script>let x = '<b>';</script><script src=y></script>")
    found = dict(part.split(" ", 1) for part in page.policy.split("; "))
    assert found["default-src"] == "'none'"
    assert found["connect-src"] == "'self'"
    # printf 'a{}' | openssl dgst -sha256 -binary | base64
    assert found["style-src"] == "'sha256-X1RutGBrXCt9KkSaXMK7tHftWiRscFHOhxsS8tv8hBk='"
    assert re.fullmatch(r"('sha256-\S{43}=' ?){2}", found["script-src"])
    assert "'none'" in Page("<p>nothing").policy


def test_the_page_is_served(tiny):
    found = tiny.get("/")
    assert found.headers["content-type"].startswith("text/html")
    assert "connect-src 'self'" in found.headers["content-security-policy"]
    assert found.headers["x-content-type-options"] == "nosniff"
    assert found.content == Page().content


def test_without_the_extra_the_verb_says_how_to_get_it(monkeypatch):
    from specblock.cli.serving import serve

    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    found = CliRunner().invoke(app, ["serve"])
    assert found.exit_code == 2
    assert "pip install 'specblock[serve]'" in found.stderr


def test_every_limit_is_in_the_help():
    text = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).stdout
    for name in ServingConfig.model_fields:
        assert f"--{name.removesuffix('_mib').replace('_', '-')}" in text
    for name in ("api-key-file", "memory", "adapt", "adapt-memory"):
        assert f"--{name}" in text
