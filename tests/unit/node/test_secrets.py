"""Secrets on their way to an instance, and out of what guests say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from spear_core.api import Artifact, ErrorInfo, RuntimeInstanceId, SecretSource
from spear_core.errors import InstanceStartError, SecretNotFoundError
from spear_core.node._secrets import Secrets

VALUE = "correct horse battery"
ID = RuntimeInstanceId(runtime_type="r", instance_id="i-1")


def artifact(**secrets: str) -> Artifact:
    return Artifact(
        name="f",
        version=1,
        digest="0" * 64,
        runtime="r",
        shape="s",
        path=Path("/f"),
        filename="f",
        secrets=secrets,
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(VALUE + "\n")
    path.chmod(0o600)
    return path


def test_values_come_from_the_environment_and_from_files(file: Path) -> None:
    sources = {"one": SecretSource(env="ONE"), "two": SecretSource(file=file)}
    secrets = Secrets(sources, warn=pytest.fail, environ={"ONE": "1"})
    spec = secrets.instance_spec(ID, artifact(A="one", B="two"))
    assert spec.secrets == {"A": "1", "B": VALUE}
    assert VALUE not in repr(spec)
    file.write_text("changed meanwhile")
    assert secrets.instance_spec(ID, artifact(B="two")).secrets == {"B": "changed meanwhile"}


def test_an_artifact_without_secrets_gets_none() -> None:
    secrets = Secrets({"one": SecretSource(env="ONE")}, warn=pytest.fail, environ={"ONE": "1"})
    assert secrets.instance_spec(ID, artifact()).secrets == {}


def test_a_secret_that_is_not_defined_is_named_with_the_remedy() -> None:
    secrets = Secrets({"one": SecretSource(env="ONE")}, warn=pytest.fail, environ={})
    with pytest.raises(SecretNotFoundError, match=r"'other' as A.*defined: one.*\[secrets\]"):
        secrets.instance_spec(ID, artifact(A="other"))
    with pytest.raises(SecretNotFoundError, match=r"'one' has no value.*without ONE"):
        secrets.instance_spec(ID, artifact(A="one"))
    secrets.configure({"other": SecretSource(env="PATH")})
    secrets.check("f", {"A": "other"})


def test_all_that_have_no_value_are_named_and_no_value_is(file: Path, tmp_path: Path) -> None:
    sources = {
        "one": SecretSource(env="ONE"),
        "two": SecretSource(file=file),
        "three": SecretSource(env="THREE"),
        "four": SecretSource(file=tmp_path / "gone"),
        "five": SecretSource(file=tmp_path),
    }
    secrets = Secrets(sources, warn=pytest.fail, environ={"ONE": "1"})
    three, four, five = secrets.unresolved()
    assert "'three' has no value" in three
    assert "THREE" in three
    assert "'four' cannot be read" in four
    assert "'five'" in five
    assert VALUE not in "".join((three, four, five))


def test_a_file_that_is_no_secret_is_refused_without_its_content(tmp_path: Path) -> None:
    binary, empty, long = tmp_path / "binary", tmp_path / "empty", tmp_path / "long"
    binary.write_bytes(b"\xffsecret")
    empty.write_bytes(b"\n")
    long.write_bytes(b"x" * 70_000)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, reason in [
        (binary, "not UTF-8"),
        (empty, "is empty"),
        (long, "more than 65536"),
        (fifo, "no regular file"),
        (tmp_path, "no regular file"),
        (tmp_path / "none", "No such file"),
    ]:
        secrets = Secrets({"s": SecretSource(file=path)}, warn=lambda _: None)
        with pytest.raises(SecretNotFoundError, match=reason) as info:
            secrets.instance_spec(ID, artifact(A="s"))
        assert "'s'" in str(info.value)
        assert "secret\n" not in str(info.value)


def test_a_file_that_everybody_can_read_draws_one_warning(file: Path) -> None:
    file.chmod(0o644)
    warnings: list[str] = []
    secrets = Secrets({"s": SecretSource(file=file)}, warn=warnings.append)
    for _ in range(2):
        assert secrets.instance_spec(ID, artifact(A="s")).secrets == {"A": VALUE}
    assert len(warnings) == 1
    assert "chmod" in warnings[0]
    assert VALUE not in warnings[0]


def test_values_are_struck_out_of_what_a_guest_says(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(f"-----BEGIN KEY-----\n{VALUE}\nab\n-----END KEY-----\n")
    key.chmod(0o600)
    environ = {"P": "hunter2!", "LONGER": "hunter2!!", "SHORT": "abc"}
    sources = {name.lower(): SecretSource(env=name) for name in environ}
    secrets = Secrets({**sources, "key": SecretSource(file=key)}, warn=pytest.fail, environ=environ)
    wants = artifact(A="p", B="longer", C="short", D="key")
    assert secrets.strike(wants, "hunter2!") == "hunter2!"  # nobody has been given it
    secrets.instance_spec(ID, wants)
    assert secrets.strike(wants, "a hunter2! b hunter2!! c abc") == "a *** b *** c abc"
    assert secrets.strike(wants, f"  {VALUE} ab") == "  *** ab"
    assert secrets.strike(artifact(), "hunter2!") == "hunter2!"
    assert secrets.strike_all("hunter2!") == "***"
    error = ErrorInfo(
        code="unknown", message="bad hunter2!", kind="hunter2!", details={"stderr": VALUE}
    )
    assert secrets.strike_error(wants, error) == ErrorInfo(
        code="unknown", message="bad ***", kind="***", details={"stderr": "***"}
    )
    assert secrets.strike_error(artifact(), error) is error
    raised = InstanceStartError("it said: hunter2!")
    secrets.strike_exception(artifact(), raised)
    assert str(raised) == "it said: hunter2!"
    secrets.strike_exception(wants, raised)
    assert (str(raised), raised.message) == ("it said: ***", "it said: ***")


def test_a_value_that_has_changed_is_still_struck_out(file: Path) -> None:
    secrets = Secrets({"s": SecretSource(file=file)}, warn=pytest.fail)
    secrets.instance_spec(ID, artifact(A="s"))
    file.write_text("another value")
    secrets.instance_spec(ID, artifact(A="s"))
    assert secrets.strike(artifact(A="s"), f"{VALUE} another value") == "*** ***"


@pytest.mark.parametrize(
    "arguments", [{}, {"env": "A", "file": Path("/a")}, {"file": Path("relative")}]
)
def test_a_source_is_one_of_the_two(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        SecretSource(**arguments)  # type: ignore[arg-type]
