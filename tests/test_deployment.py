"""What `examples/deploy/` promises, without an engine for it: its manifests are valid, and its image's steps work."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import compose_spec.compose_spec
import kubernetes_validate
import pytest
import yaml
from cryptography.fernet import Fernet

from tests.stack import free_port

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "examples" / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
MANIFESTS = [
    manifest
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml"))
    for manifest in yaml.safe_load_all(path.read_text())
]
NOBODY = 65532
CLOSING = 25
"""Seconds that a source's refresh under way may take: its `timeout`, unless told (docs/operations.md)."""


def manifest(kind: str, name: str = "idp-gateway") -> dict:
    (found,) = [each for each in MANIFESTS if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


# Manifests


@pytest.mark.parametrize("version", ["1.32", "1.37"])
@pytest.mark.parametrize("each", MANIFESTS, ids=lambda each: f"{each['kind']} {each['metadata']['name']}")
def test_each_manifest_is_valid(each, version):
    """By Kubernetes' own schemas, the oldest with `preStop.sleep` on by default and the newest; no field unknown."""
    kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize(("key", "value"), [("replicas", "two"), ("unknown", 1)])
def test_the_schemas_have_teeth(key, value):
    """Else the test above could not fail."""
    broken = json.loads(json.dumps(manifest("Deployment")))
    broken["spec"][key] = value
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.37", strict=True)


def by_the_schema(path):
    """What the Compose Specification's own JSON Schema, the newest that `check-jsonschema` has, says of a file."""
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    done = subprocess.run(check, capture_output=True, text=True)
    return done.returncode, done.stdout


def test_the_compose_file_is_valid():
    """By the official schema, in which nothing unknown is allowed; and by a parser, since to a schema all texts are
    alike.
    """
    assert by_the_schema(DEPLOY / "compose.yaml") == (0, "ok -- validation done\n")
    made = compose_spec.compose_spec.PyCompose.from_yaml((DEPLOY / "compose.yaml").read_text())
    assert made.service_names() == ["gateway", "redis"]


@pytest.mark.parametrize(
    ("right", "wrong", "named"),
    [
        ("\nname:", "\nnmae:", "nmae"),
        ("read_only: true", "read_onyl: true", "read_onyl"),
        ("interval: 5s", "intervall: 5s", "intervall"),
        ("condition: service_healthy", "condition: service_fine", "service_fine"),
        ("mem_limit: 384m", "mem_limit: [384]", "[384]"),
    ],
)
def test_the_compose_schema_has_teeth(tmp_path, right, wrong, named):
    """At the top, in a service and below it: unknown keys, and values of another kind."""
    text = (DEPLOY / "compose.yaml").read_text()
    assert right in text
    (tmp_path / "compose.yaml").write_text(text.replace(right, wrong, 1))
    status, said = by_the_schema(tmp_path / "compose.yaml")
    assert status == 1
    assert named in said


@pytest.mark.parametrize(
    ("right", "wrong"), [("50s", "soon"), ("unless-stopped", "sometimes"), ("127.0.0.1:8000:8000", "127.0.0.1:x:8000")]
)
def test_the_compose_parser_reads_what_is_in_texts(right, wrong):
    """All of which the schema takes."""
    text = (DEPLOY / "compose.yaml").read_text()
    assert right in text
    with pytest.raises(ValueError, match=r"`(soon|sometimes|x)`"):
        compose_spec.compose_spec.PyCompose.from_yaml(text.replace(right, wrong, 1))


def test_everything_that_runs_may_do_little():
    """No root, nothing written, no capability."""
    for service in COMPOSE["services"].values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    for name in ("idp-gateway", "idp-redis"):
        pod = manifest("Deployment", name)["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert not pod["automountServiceAccountToken"]
        for container in pod["containers"]:
            may = container["securityContext"]
            assert may["readOnlyRootFilesystem"]
            assert not may["allowPrivilegeEscalation"]
            assert may["capabilities"] == {"drop": ["ALL"]}


def test_what_says_that_a_token_was_revoked_is_evicted_last():
    """It expires last; by use it would go among the first, since only processes that start read it again."""
    (container,) = manifest("Deployment", "idp-redis")["spec"]["template"]["spec"]["containers"]
    for arguments in (" ".join(container["args"]), COMPOSE["services"]["redis"]["command"][-1]):
        assert "--maxmemory-policy volatile-ttl" in arguments


def test_nobody_is_killed_within_its_grace():
    """Nor while it brings a refresh to its end, for which a source has 25 seconds."""
    pod = manifest("Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    grace = int(container["args"][container["args"].index("--grace") + 1])
    assert (
        pod["terminationGracePeriodSeconds"] >= container["lifecycle"]["preStop"]["sleep"]["seconds"] + grace + CLOSING
    )
    gateway = COMPOSE["services"]["gateway"]
    grace = int(gateway["command"][gateway["command"].index("--grace") + 1])
    assert int(gateway["stop_grace_period"].removesuffix("s")) >= grace + CLOSING


def test_the_configuration_gets_every_variable_it_asks_for():
    """From either of the two; one that is missing would keep the gateway from starting."""
    asked = set(re.findall(r"\$\{(\w+)\}", (DEPLOY / "idp.toml").read_text()))
    assert asked <= set(COMPOSE["services"]["gateway"]["environment"])
    assert asked <= {*manifest("ConfigMap")["data"], *manifest("Secret")["stringData"]}


# The image


def as_nobody() -> tuple[list[str], str]:
    """How to become the image's user, and a Python which that user can run, if both are possible here."""
    become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    if os.geteuid() == 0 and shutil.which("setpriv") is not None:
        ask = ["-c", "import ensurepip, sys; print(sys.version_info >= (3, 11) and sys.base_prefix)"]
        for python in (sys.executable, "/usr/local/bin/python3", "/usr/bin/python3"):
            if not Path(python).exists():
                continue
            here, there = (
                subprocess.run([*prefix, python, *ask], capture_output=True, text=True).stdout
                for prefix in ([], become)
            )
            # A home that is closed to others lets a virtual environment end up at another Python.
            if here == there and here.strip() not in ("", "False"):
                return become, python
    return [], sys.executable


class Image:
    """A Dockerfile carried out in a folder: what it names absolutely is below that."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8"}
        self.entry: list[str] = []
        self.command: list[str] = []
        self.health: list[str] = []
        self.user = ""
        self.workdir = folder
        self.become, self.python = as_nobody()

    def here(self, text: str) -> str:
        text = re.sub(r"(?<![\w./:])/(src|opt|wheels|etc)(?=[/\s:\"']|$)", rf"{self.folder}/\1", text)
        return re.sub(r"(?<=:)/(opt)(?=/)", rf"{self.folder}/\1", text)

    def build(self, dockerfile: str) -> None:
        for line in dockerfile.replace("\\\n", " ").splitlines():
            word, _, rest = line.partition(" ")
            if word and not word.startswith("#"):
                getattr(self, f"_{word.lower()}")(rest)

    def _from(self, rest: str) -> None:
        assert re.fullmatch(r"python:3\.\d+-slim( AS \w+)?", rest)
        self.workdir = self.folder

    def _workdir(self, rest: str) -> None:
        self.workdir = Path(self.here(rest))
        self.workdir.mkdir(parents=True)

    def _copy(self, rest: str) -> None:
        if rest.startswith("--from=build "):
            # A stage is the same folder here; and a virtual environment works only where it was made.
            _, source, target = rest.split()
            assert source == target
            return
        *sources, target = rest.split()
        there = self.workdir / self.here(target)
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, there, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                to = there / source if target.endswith("/") else there
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, to)

    def _env(self, rest: str) -> None:
        name, _, value = rest.partition("=")
        value = self.here(value).replace("$PATH", self.environment["PATH"])
        self.environment[name] = value

    def _run(self, rest: str) -> None:
        line = re.sub(r"^python ", f"{self.python} ", self.here(rest))
        pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        done = subprocess.run(
            ["sh", "-ec", line], cwd=self.workdir, env=self.environment | pip, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"

    def _user(self, rest: str) -> None:
        self.user = rest

    def _expose(self, rest: str) -> None:
        assert rest == "8000"

    def _healthcheck(self, rest: str) -> None:
        self.health = json.loads(rest.partition(" CMD ")[2])

    def _entrypoint(self, rest: str) -> None:
        self.entry = json.loads(rest)

    def _cmd(self, rest: str) -> None:
        self.command = json.loads(rest)

    def run(self, arguments: list[str], port: int, **environment: str) -> subprocess.Popen[bytes]:
        """Run something as the image would, but for the port."""
        arguments = [self.here(each).replace("8000", str(port)) for each in arguments]
        return subprocess.Popen(
            [*self.become, *arguments],
            cwd=self.folder,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )


@pytest.fixture
def folder():
    # Not below pytest's own, which is for its user only.
    made = Path(tempfile.mkdtemp())
    made.chmod(0o755)
    yield made
    subprocess.run(["chmod", "-R", "u+w", str(made)], check=True)
    shutil.rmtree(made)


def test_what_the_image_copies_gets_to_the_builder():
    """The ignore file names what does, so that no secret of a working copy can; a folder left out breaks the build."""
    copied = re.findall(r"^COPY (?!--)(.*) \S+$", (DEPLOY / "Dockerfile").read_text(), re.M)
    sent = re.findall(r"^!(.*)$", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.M)
    assert sorted(name for names in copied for name in names.split()) == sorted(sent)


@pytest.mark.timeout(300)
def test_the_images_steps_give_a_gateway_that_is_well(folder):
    """Carried out one by one in a clean environment, and run with nothing to write to."""
    image = Image(folder)
    image.build((DEPLOY / "Dockerfile").read_text())
    assert image.user == f"{NOBODY}:{NOBODY}"
    subprocess.run(["chmod", "-R", "a-w", str(folder)], check=True)
    port = free_port()
    gateway = image.run(
        [*image.entry, *image.command],
        port,
        IDP_ISSUER="https://acme.eu.auth0.com/",
        IDP_AUDIENCE="https://api.acme.example",
        AUTH0_URL="https://acme.eu.auth0.com",
        AUTH0_CLIENT_ID="id",
        AUTH0_CLIENT_SECRET="secret",
        IDP_REDIS_URL=f"redis://127.0.0.1:{free_port()}/0",
        IDP_KEY=Fernet.generate_key().decode(),
    )
    try:
        end = time.monotonic() + 30
        while (check := image.run(image.health, port)).wait(timeout=30) != 0:
            said = check.stdout.read()
            check.stdout.close()
            assert gateway.poll() is None, gateway.stdout.read().decode()
            assert time.monotonic() < end, said.decode()
            time.sleep(0.1)
        check.stdout.close()
    finally:
        gateway.send_signal(signal.SIGTERM)
        said, _ = gateway.communicate(timeout=40)
    assert b"Traceback" not in said, said.decode()
    assert shlex.join(image.entry) == "idp-middleware serve /etc/idp/idp.toml --host 0.0.0.0 --port 8000"
