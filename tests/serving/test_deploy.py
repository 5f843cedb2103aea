"""The deployment files say what the server has: flags, routes, metrics."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer

from qwen3_embedding.cli.serve import command
from qwen3_embedding.serving.app import create_app
from qwen3_embedding.serving.metrics import Metrics
from qwen3_embedding.serving.ray import Arguments

if TYPE_CHECKING:
    from qwen3_embedding.serving.server import Server

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


@pytest.fixture(scope="module")
def flags() -> set[str]:
    app = typer.Typer(add_completion=False)
    app.command()(command)
    return {flag for parameter in typer.main.get_command(app).params for flag in parameter.opts}


def manifests() -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml")
    return list(yaml.safe_load_all((DEPLOY / "kubernetes" / "qwen3-embedding.yaml").read_text()))


def test_kubernetes_uses_flags_and_routes_that_exist(flags: set[str], server: Server) -> None:
    deployment, service, budget = manifests()
    pod = deployment["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert {word for word in container["args"] if word.startswith("--")} <= flags
    routes = {getattr(route, "path", "") for route in create_app(server).routes}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["path"] in routes
    drain = int(container["args"][container["args"].index("--drain") + 1])
    sleep = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > drain + sleep
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_compose_and_dockerfile_use_flags_that_exist(flags: set[str]) -> None:
    yaml = pytest.importorskip("yaml")
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["qwen3-embedding"]
    assert {word for word in service["command"] if word.startswith("--")} <= flags
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    for line in re.findall(r"^(?:ENTRYPOINT|CMD) (\[.*\])$", dockerfile, re.MULTILINE):
        assert {word for word in json.loads(line) if word.startswith("--")} <= flags


def test_ray_serve_names_what_exists() -> None:
    yaml = pytest.importorskip("yaml")
    (application,) = yaml.safe_load((DEPLOY / "ray-serve.yaml").read_text())["applications"]
    module, _, name = application["import_path"].partition(":")
    assert callable(getattr(import_module(module), name))
    assert Arguments.model_validate(application["args"]).replicas == 2


def test_the_dashboard_shows_metrics_that_exist(server: Server) -> None:
    metrics = Metrics()
    metrics.watch("m", server.services[0].queue.stats)
    for name in ("te_request_failure", "te_request_count"):
        metrics.count(name)
    metrics.requests.labels("/", "200")
    metrics.tokens.labels("m", "c")
    metrics.truncated.labels("m")
    metrics.batch_seconds.labels("m")
    exposed = set(re.findall(r"^(\w+)", metrics.render().decode(), re.MULTILINE))
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    used = {name for panel in dashboard["panels"] for target in panel["targets"]
            for name in re.findall(r"\b(?:te|qwen3)_\w+", target["expr"])}  # fmt: skip
    assert len(used) > 15
    assert used <= exposed
