"""Test every form of Kaggle credentials in a clean home: by doctor, and by a push."""

import json
import os
import pwd
import shutil
import string
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kagglesdk import KaggleCredentials

from clotkit.cli import main
from clotkit.errors import RemoteError
from clotkit.kaggle.client import ENDPOINT, Kaggle, sign_in
from clotkit.kaggle.login.credentials import CredentialKind, Credentials, candidates
from clotkit.kaggle.login.oauth import Login, parse_login
from clotkit.reasons import RemoteKind

from .conftest import ROOT
from .delivery import TOKEN, quiet, remote_error
from .kaggle_server import Fault, KaggleServer

REFRESH, OLD = "a-login", "KGAT_of-yesterday"
KEY = json.dumps({"username": "alice", "key": "0123456789abcdef0123456789abcdef"})
DEEP = '{"a":' * 100_000  # json gives up
TOKEN_AS_KEY = json.dumps({"username": "alice", "key": TOKEN})


def a_login(hours: float | None = 6, **changes: Any) -> str:
    """Return a credentials.json as `kaggle auth login` writes it, with hours until its token expires."""
    expires = "" if hours is None else (datetime.now(UTC) + timedelta(hours=hours)).isoformat()
    entries = {"refresh_token": REFRESH, "access_token": OLD, "access_token_expiration": expires, "username": "alice"}
    return json.dumps(entries | {"scopes": ["resources.admin:*"]} | changes)


# {form: (files below the home, variables, the kind, the end of the source that doctor names)}
FORMS: dict[str, tuple[dict[str, str], dict[str, str], CredentialKind, str]] = {
    "token in the variable": ({}, {"KAGGLE_API_TOKEN": TOKEN}, CredentialKind.TOKEN, "KAGGLE_API_TOKEN"),
    "token in a file that the variable names": (
        {"secret": f"{TOKEN}\n"}, {"KAGGLE_API_TOKEN": "{home}/secret"}, CredentialKind.TOKEN, "/secret"
    ),
    "access_token": ({".kaggle/access_token": TOKEN}, {}, CredentialKind.TOKEN, "/.kaggle/access_token"),
    "access_token.txt": ({".kaggle/access_token.txt": TOKEN}, {}, CredentialKind.TOKEN, "/.kaggle/access_token.txt"),
    "legacy key": ({".kaggle/kaggle.json": KEY}, {}, CredentialKind.KEY, "/.kaggle/kaggle.json"),
    "token as the key in kaggle.json": (
        {".kaggle/kaggle.json": TOKEN_AS_KEY}, {}, CredentialKind.TOKEN, "/.kaggle/kaggle.json"
    ),
    "token in KAGGLE_KEY alone": ({}, {"KAGGLE_KEY": TOKEN}, CredentialKind.TOKEN, "KAGGLE_KEY"),
    "legacy key in KAGGLE_CONFIG_DIR": (
        {"config/kaggle.json": KEY}, {"KAGGLE_CONFIG_DIR": "{home}/config"}, CredentialKind.KEY, "/config/kaggle.json"
    ),
    "legacy key in the variables": (
        {}, {"KAGGLE_USERNAME": "alice", "KAGGLE_KEY": "k"}, CredentialKind.KEY, "KAGGLE_USERNAME, KAGGLE_KEY"
    ),
    "key in a variable, user name in kaggle.json": (
        {".kaggle/kaggle.json": KEY}, {"KAGGLE_KEY": "k"}, CredentialKind.KEY, "/.kaggle/kaggle.json"
    ),
    "login": ({".kaggle/credentials.json": a_login()}, {}, CredentialKind.LOGIN, "/.kaggle/credentials.json"),
    "login whose access token has expired": (
        {".kaggle/credentials.json": a_login(-1)}, {}, CredentialKind.LOGIN, "/.kaggle/credentials.json"
    ),
    "login without an access token": (
        {".kaggle/credentials.json": a_login(None, access_token="")}, {}, CredentialKind.LOGIN, "credentials.json"
    ),
    "login after kaggle config set": (
        {".kaggle/credentials.json": a_login(), ".kaggle/kaggle.json": '{"competition": "x"}'}, {},
        CredentialKind.LOGIN, "/.kaggle/credentials.json",
    ),
}  # fmt: skip


@pytest.fixture
def account(server: KaggleServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put files and variables into a clean home that reaches the loopback server only."""
    monkeypatch.setenv(ENDPOINT, quiet(server).endpoint)
    monkeypatch.delenv("KAGGLE_CONFIG_DIR")

    def put(files: dict[str, str], variables: dict[str, str] | None = None) -> None:
        for name, text in files.items():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_text(text)
            (home / name).chmod(0o600)
        for name, text in (variables or {}).items():
            monkeypatch.setenv(name, text.format(home=home))

    return put


def saved(home: Path) -> dict[str, Any]:
    return dict(json.loads((home / ".kaggle" / "credentials.json").read_text()))


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_named_by_doctor_and_pushes(
    form: str,
    account: Callable[..., None],
    server: KaggleServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files, variables, kind, source = FORMS[form]
    account(files, variables)
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "datasets_meta", checkout / "datasets_meta")
    (checkout / "folder").mkdir()
    (checkout / "folder" / "a.h5").write_bytes(b"weights")
    monkeypatch.chdir(checkout)
    assert next(candidates()).kind is kind

    assert main(["kaggle", "doctor"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("credentials:"))
    assert "of alice" in line
    assert line.endswith(source)

    assert main(["kaggle", "datasets-push", "imagenet", "--folder", "folder"]) == 0
    assert list(server.datasets) == ["alice/clotkit-imagenet"]
    printed = "".join(capsys.readouterr())
    assert not [secret for secret in (TOKEN, REFRESH, OLD, "0123456789abcdef") if secret in printed]


def test_all_forms_at_once_are_tried_in_the_order_of_kaggles_client(account: Callable[..., None], home: Path) -> None:
    account(
        {
            "secret": "KGAT_1", ".kaggle/access_token": "KGAT_2", ".kaggle/access_token.txt": "KGAT_3",
            ".kaggle/kaggle.json": KEY, ".kaggle/credentials.json": a_login(),
        },
        {"KAGGLE_API_TOKEN": "{home}/secret"},
    )  # fmt: skip
    assert [credentials.source.removeprefix(f"{home}/") for credentials in candidates()] == [
        "secret", ".kaggle/access_token", ".kaggle/access_token.txt", ".kaggle/kaggle.json", ".kaggle/credentials.json"
    ]  # fmt: skip


def test_tokens_that_are_not_active_are_passed_over(
    account: Callable[..., None],
    server: KaggleServer,
    home: Path,
    lines: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    account({".kaggle/access_token": OLD, ".kaggle/kaggle.json": KEY}, {"KAGGLE_API_TOKEN": "KGAT_older"})
    server.expired_tokens = {OLD, "KGAT_older"}
    client = sign_in(lines.append)
    assert client.credentials.source == str(home / ".kaggle" / "kaggle.json")
    assert [line.partition(":")[0] for line in lines] == ["KAGGLE_API_TOKEN", str(home / ".kaggle" / "access_token")]
    assert main(["kaggle", "doctor"]) == 0
    assert sum("credentials not used" in line for line in capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("status", [200, 400, 403, 404])
def test_a_token_that_is_not_active_is_one_line_if_it_is_all_there_is(
    status: int, account: Callable[..., None], server: KaggleServer, lines: list[str]
) -> None:
    account({".kaggle/access_token": OLD})
    server.expired_tokens = {OLD}
    if status != 200:
        server.faults.add(Fault("IntrospectToken", "status", status=status))
    with remote_error(RemoteKind.INACTIVE, ".kaggle/access_token", "kaggle auth login"):
        sign_in(lines.append)
    assert lines == []


def test_a_renewed_login_is_written_for_kaggles_client_and_for_its_owner_alone(
    account: Callable[..., None], server: KaggleServer, home: Path
) -> None:
    account({".kaggle/credentials.json": a_login(-1, more="kept")})
    before = datetime.now(UTC)
    client = sign_in(lambda _: None)
    client.quota()
    path, now = home / ".kaggle" / "credentials.json", saved(home)
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(path.parent.iterdir()) == [path]
    assert (now["access_token"], now["refresh_token"], now["more"]) == (server.granted[0], REFRESH, "kept")
    lasts = datetime.fromisoformat(now["access_token_expiration"]) - before
    assert timedelta(hours=12) <= lasts < timedelta(hours=13)
    assert set(client.secrets) >= {REFRESH, server.granted[0]}
    client.quota()
    theirs = KaggleCredentials.load(client=None, file_path=str(path))
    assert (theirs.get_access_token(), theirs.get_username()) == (server.granted[0], "alice")
    sign_in(lambda _: None).quota()  # the saved token is used
    assert len(server.granted) == 1
    sent = [call.headers["Authorization"] for call in server.calls if call.method != "GenerateAccessToken"]
    assert set(sent) == {f"Bearer {server.granted[0]}"}
    renewals = [call.headers for call in server.calls if call.method == "GenerateAccessToken"]
    assert not any("Authorization" in headers for headers in renewals)


def test_a_login_whose_token_kaggle_ends_early_is_renewed_in_the_middle(
    account: Callable[..., None], server: KaggleServer, lines: list[str]
) -> None:
    account({".kaggle/credentials.json": a_login()})
    client = sign_in(lines.append)
    client.quota()
    server.expired_tokens = {OLD}
    client.quota()
    assert len(server.granted) == 1
    server.expired_tokens.add(server.granted[0])
    server.logins.clear()
    with remote_error(RemoteKind.INACTIVE, "credentials.json", "kaggle auth login"):
        client.quota()


@pytest.mark.parametrize("hours", [-3, 6])
def test_a_login_without_a_user_name_is_renewed_before_it_is_called_expired(
    hours: float, account: Callable[..., None], server: KaggleServer, home: Path
) -> None:
    account({".kaggle/credentials.json": a_login(hours, username="")})
    server.expired_tokens = {OLD}
    assert sign_in(lambda _: None).username == "alice"
    assert (saved(home)["username"], saved(home)["access_token"]) == ("alice", server.granted[0])
    assert sign_in(lambda _: None).username == "alice"
    assert len(server.granted) == 1


def test_a_login_without_a_user_name_whose_new_token_is_not_active_is_renewed_once(
    account: Callable[..., None], server: KaggleServer
) -> None:
    account({".kaggle/credentials.json": a_login(username="")})
    server.username, server.expired_tokens = "", {OLD, "KGAT_login0_of_"}
    with remote_error(RemoteKind.INACTIVE, "credentials.json"):
        _ = sign_in(lambda _: None).username
    assert len(server.granted) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_login_that_was_revoked_is_one_line_and_its_file_stays(
    status: int, account: Callable[..., None], server: KaggleServer, home: Path
) -> None:
    account({".kaggle/credentials.json": a_login(-1)})
    server.logins.clear()
    server.login_refusal = status
    before = saved(home)
    with remote_error(RemoteKind.INACTIVE, str(home / ".kaggle" / "credentials.json"), "kaggle auth login"):
        sign_in(lambda _: None).quota()
    assert saved(home) == before


def test_a_file_that_cannot_be_written_does_not_stop_a_login(
    account: Callable[..., None], server: KaggleServer, home: Path, lines: list[str]
) -> None:
    account({"elsewhere/credentials.json": a_login(-1)})
    (home / ".kaggle").mkdir()
    (home / ".kaggle" / "credentials.json").symlink_to(home / "elsewhere" / "credentials.json")
    login = parse_login(home / ".kaggle" / "credentials.json", a_login(-1))
    client = Kaggle(Credentials("", login=login), server.endpoint, log=lines.append)
    shutil.rmtree(home / "elsewhere")
    client.quota()
    assert ["credentials.json" in line for line in lines] == [True]


def test_a_link_stays_a_link(account: Callable[..., None], home: Path) -> None:
    account({"elsewhere/credentials.json": a_login(-1)})
    (home / ".kaggle").mkdir()
    link = home / ".kaggle" / "credentials.json"
    link.symlink_to(home / "elsewhere" / "credentials.json")
    sign_in(lambda _: None).quota()
    assert link.is_symlink()
    assert saved(home)["access_token"] != OLD


@pytest.mark.parametrize(
    ("text", "fresh"),
    [
        (a_login(1), True),
        (a_login(0.05), False),  # too soon
        (a_login(-0.2), False),  # Kaggle's client would use it for 30 minutes more
        (a_login(None), False),
        (a_login(access_token_expiration="2026-01-01T00:00:00"), False),  # without a zone
        (a_login(1, access_token=""), False),
        (a_login(1, access_token="two\nlines"), False),
        (a_login(access_token_expiration="soon"), False),
    ],
)
def test_a_token_is_renewed_before_it_expires(text: str, fresh: bool, tmp_path: Path) -> None:
    assert parse_login(tmp_path, text).fresh is fresh


NO_LOGINS = [
    "", "{", "[]", "3", "{}", DEEP, '{"refresh_token": ""}', '{"refresh_token": ["a"]}', a_login(refresh_token="\u201d")
]  # fmt: skip


@pytest.mark.parametrize("text", NO_LOGINS)
def test_a_file_without_a_login_is_one_line(text: str, tmp_path: Path) -> None:
    with remote_error(RemoteKind.CREDENTIALS, str(tmp_path), "kaggle auth login"):
        parse_login(tmp_path, text)


@given(
    st.dictionaries(
        st.sampled_from(["refresh_token", "access_token", "access_token_expiration", "username"]),
        st.one_of(st.none(), st.text(), st.integers(), st.just(REFRESH), st.datetimes().map(str)),
    )
)
def test_any_object_is_a_login_or_one_line(entries: dict[str, Any]) -> None:
    path, text = Path("credentials.json"), json.dumps(entries)
    token = entries.get("refresh_token")
    if isinstance(token, str) and token.isascii() and token.strip():
        assert parse_login(path, text).fresh in (True, False)
    else:
        with remote_error(RemoteKind.CREDENTIALS, "credentials.json"):
            parse_login(path, text)


def test_secrets_are_in_no_representation(tmp_path: Path) -> None:
    login = Login(tmp_path, REFRESH, OLD)
    shown = repr(Credentials(TOKEN, login=login)) + repr(login)
    assert not [secret for secret in (TOKEN, REFRESH, OLD) if secret in shown]


BROKEN = ["", "{", TOKEN, f'"{TOKEN}"', "[1]", '{"username": ["a"], "key": 5}', '{"username": "a", "key": 5}', DEEP]


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_kaggle_json_hides_no_other_credentials(
    text: str, account: Callable[..., None], home: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    account({".kaggle/kaggle.json": text})
    with remote_error(RemoteKind.CREDENTIALS, str(home / ".kaggle" / "kaggle.json")):
        sign_in(lines.append)
    assert lines == []
    account({".kaggle/credentials.json": a_login()})
    assert sign_in(lines.append).credentials.kind is CredentialKind.LOGIN
    assert [line.partition(":")[0] for line in lines] == [str(home / ".kaggle" / "kaggle.json")]
    account({}, {"KAGGLE_USERNAME": "alice", "KAGGLE_KEY": "k"})
    assert sign_in(lines.append).credentials == Credentials("k", "alice")
    monkeypatch.delenv("KAGGLE_USERNAME")
    account({}, {"KAGGLE_KEY": TOKEN})
    assert sign_in(lines.append).credentials == Credentials(TOKEN)
    assert len(lines) == 1


def in_a_loop(home: Path) -> str:
    (home / "loop").symlink_to(home / "loop")
    return str(home / "loop" / "config")


def without_permission(home: Path) -> str:
    folder = home / "closed"
    folder.mkdir(mode=0)
    if os.access(folder, os.X_OK):
        pytest.skip("this user may look into every folder")
    return str(folder)


UNUSABLE: dict[str, Callable[[Path], str]] = {
    "a user that is not known": lambda _: "~nobody-of-this-name/config",
    "a name that is too long": lambda home: f"{home}/{'n' * 300}",
    "a path that is too long": lambda home: str(home) + "/deep" * 2_000,
    "an unknown user's name that is too long": lambda _: "~" + "n" * 5_000,
    "a loop of links": in_a_loop,
    "no permission": without_permission,
}


@pytest.mark.parametrize("variable", ["KAGGLE_CONFIG_DIR", "XDG_CONFIG_HOME"])
@pytest.mark.parametrize("place", UNUSABLE)
def test_a_folder_that_cannot_be_used_hides_no_other_credentials(
    place: str, variable: str, account: Callable[..., None], home: Path, lines: list[str],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv(variable, UNUSABLE[place](home))
    with remote_error(RemoteKind.CREDENTIALS, variable):
        sign_in(lines.append)
    assert main(["kaggle", "doctor"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert lines == []
    account({".kaggle/credentials.json": a_login()})
    assert sign_in(lines.append).credentials.kind is CredentialKind.LOGIN
    assert [(variable in line, len(line) < 500) for line in lines] == [(True, True)]
    assert main(["kaggle", "doctor", "--json"]) == 0
    unused = json.loads(capsys.readouterr().out)["credentials"]["not_used"]
    assert [entry["error"]["code"] for entry in unused] == ["credentials"]


@pytest.mark.parametrize("home_variable", [None, "long"])
def test_without_a_home_other_credentials_are_used(
    home_variable: str | None,
    account: Callable[..., None],
    home: Path,
    lines: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unknown(_: int) -> None:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    if home_variable is None:
        monkeypatch.delenv("HOME")
    else:
        monkeypatch.setenv("HOME", str(home) + "/deep" * 2_000)
    with remote_error(RemoteKind.CREDENTIALS, "HOME"):
        sign_in(lines.append)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    account({"config/kaggle/kaggle.json": KEY})
    assert sign_in(lines.append).credentials.kind is CredentialKind.KEY
    monkeypatch.delenv("XDG_CONFIG_HOME")
    account({}, {"KAGGLE_USERNAME": "alice", "KAGGLE_KEY": "k"})
    assert sign_in(lines.append).credentials == Credentials("k", "alice")
    assert all("HOME" in line for line in lines)


@given(st.one_of(st.integers(), st.booleans(), st.lists(st.text()), st.just("alice")), st.text(string.ascii_letters))
def test_only_strings_are_sent_as_a_legacy_key(username: Any, key: str) -> None:
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN"):
            patch.delenv(name, raising=False)
        patch.setenv("KAGGLE_CONFIG_DIR", folder)
        patch.setenv("HOME", folder)
        (Path(folder) / "kaggle.json").write_text(json.dumps({"username": username, "key": key}))
        if key and username == "alice":
            assert next(candidates()) == Credentials(key, "alice")
        else:
            with remote_error(RemoteKind.CREDENTIALS):
                next(candidates())


@pytest.mark.parametrize("name", [".kaggle/access_token", "KAGGLE_API_TOKEN"])
def test_a_token_that_cannot_be_used_is_passed_over(
    name: str, account: Callable[..., None], home: Path, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    files = {".kaggle/kaggle.json": KEY} | ({name: "two words"} if "/" in name else {})
    account(files, {} if "/" in name else {name: "~/no/such/file"})
    assert sign_in(lines.append).credentials.kind is CredentialKind.KEY
    assert [name in line for line in lines] == [True]
    assert main(["kaggle", "doctor", "--json"]) == 0
    unused = json.loads(capsys.readouterr().out)["credentials"]["not_used"]
    assert [entry["error"]["code"] for entry in unused] == ["credentials"]


@pytest.mark.parametrize("files", [{".kaggle/kaggle.json": KEY}, {".kaggle/credentials.json": a_login()}])
def test_the_doctor_ends_with_2_if_kaggle_does_not_accept_the_credentials(
    files: dict[str, str], account: Callable[..., None], server: KaggleServer, capsys: pytest.CaptureFixture[str]
) -> None:
    account(files)
    for method in ("GetCompetition", "GetSubmissionLimits", "GetAcceleratorQuotaStatistics"):
        server.faults.add(Fault(method, "status", None, status=401))
    assert main(["kaggle", "doctor", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "credentials"
    assert next(iter(files)) in error["message"]
    assert main(["kaggle", "doctor"]) == 2
    assert sum("401" in line for text in capsys.readouterr() for line in text.splitlines()) == 1


@pytest.mark.parametrize("method", ["GetCompetition", "GetSubmissionLimits", "GetAcceleratorQuotaStatistics"])
def test_the_doctor_ends_with_3_if_a_check_has_an_error(
    method: str, account: Callable[..., None], server: KaggleServer, capsys: pytest.CaptureFixture[str]
) -> None:
    account({".kaggle/kaggle.json": KEY})
    server.faults.add(Fault(method, "status", None, status=403))
    assert main(["kaggle", "doctor", "--json"]) == 3
    facts = json.loads(capsys.readouterr().out)
    assert ["error" in facts[name] for name in ("competition", "submissions", "quota")].count(True) == 1


def test_the_doctor_ends_with_3_before_the_rules_are_accepted(
    account: Callable[..., None], server: KaggleServer, capsys: pytest.CaptureFixture[str]
) -> None:
    account({".kaggle/kaggle.json": KEY})
    server.competition.entered = False
    server.tpu_allowed_s = 0
    assert main(["kaggle", "doctor", "--json"]) == 3
    facts = json.loads(capsys.readouterr().out)
    assert facts["competition"]["entered"] is False
    assert (facts["quota"]["tpu"], facts["quota"]["gpu"]["left_h"]) == (None, 29.0)


def test_no_credentials_at_all_is_one_line(account: Callable[..., None]) -> None:
    account({})
    with pytest.raises(RemoteError) as caught:
        sign_in(lambda _: None)
    assert caught.value.kind is RemoteKind.CREDENTIALS
