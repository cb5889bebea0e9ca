"""The example workflows in ComfyUI's real front end, in Debian's Chromium."""

import json
import shutil

import pytest
from support.comfy_server import running
from support.comfy_workflows import LONG, NAMES, api, of_class, ui

CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: uv run --isolated --group comfyui ...")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here: apt-get install chromium")


def _ours(complaint: str) -> bool:
    """Not what the front end says late of its first graph: it asks a hub for the sizes of that one's files."""
    return "/Comfy-Org/z_image_turbo/" not in complaint


@pytest.fixture(scope="module")
def server(request):
    return running(request.config.getoption("comfyui"))


@pytest.fixture(scope="module")
def page(server):
    """The front end as a new user sees it; `page.complaints` lists console errors since it was last cleared."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1600, "height": 900})
        page.set_default_timeout(120_000)
        page.complaints = []
        page.on("console", lambda m: page.complaints.append(m.text) if m.type == "error" and _ours(m.text) else None)
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(server.url)
        page.wait_for_function("() => window.app?.vueAppReady && window.app.graph")
        page.wait_for_timeout(1000)  # newer ones begin with a workflow of their own, and miss its models
        page.wait_for_load_state("networkidle")
        yield page
        browser.close()


def load(page, name: str) -> None:
    page.complaints.clear()
    page.evaluate("text => app.loadGraphData(JSON.parse(text), true, true)", json.dumps(ui(name)))
    page.wait_for_timeout(300)  # what nodes do by themselves after they were loaded


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_loads_without_complaints(page, name):
    load(page, name)
    kinds = page.evaluate("() => app.graph.nodes.map(n => [n.type, n.type in LiteGraph.registered_node_types])")
    assert sorted(kind for kind, _ in kinds) == sorted(node["type"] for node in ui(name)["nodes"])
    assert [kind for kind, known in kinds if not known] == []
    assert page.complaints == []
    assert page.locator("[role=dialog]").count() == 0  # missing nodes and missing models open one


@pytest.mark.parametrize("name", NAMES)
def test_the_front_end_sends_what_the_api_copy_says(page, name):
    load(page, name)
    # as text: playwright turns what is undefined into null
    sent = json.loads(page.evaluate("async () => JSON.stringify((await app.graphToPrompt()).output)"))
    assert sent.keys() == api(name).keys()
    for i, node in api(name).items():
        assert sent[i]["class_type"] == node["class_type"]
        # newer versions of core nodes add inputs with a default
        assert {k: sent[i]["inputs"].get(k) for k in node["inputs"]} == node["inputs"], node["class_type"]


def test_a_queued_workflow_shows_progress_preview_and_result(page, server):
    name = "lcm_fast"
    load(page, name)
    sampler, save = of_class(api(name), "MuseV_Sampler"), of_class(api(name), "SaveVideo")
    page.evaluate(
        """([length, steps]) => {
            const set = (type, values) => {
                const node = app.graph.nodes.find(n => n.type === type)
                for (const w of node.widgets) if (w.name in values) w.value = values[w.name]
            }
            set("MuseV_ImageToVideo", {width: 32, height: 32, length})
            set("MuseV_Sampler", {steps, seed: 77})
            window.seen = {progress: [], previews: 0, end: null}
            const progress = ({detail}) => seen.progress.push([detail.node, detail.value / detail.max])
            app.api.addEventListener("progress", progress)
            for (const kind of ["b_preview", "b_preview_with_metadata"])
                app.api.addEventListener(kind, () => seen.previews++)
            for (const kind of ["execution_success", "execution_error", "execution_interrupted"])
                app.api.addEventListener(kind, e => { seen.end = [kind, e.detail.exception_message] })
            app.queuePrompt(0)
        }""",
        [LONG, 2],
    )
    page.wait_for_function("() => seen.end")
    seen = page.evaluate("() => seen")
    assert seen["end"][0] == "execution_success", seen["end"]
    parts = [part for node, part in seen["progress"] if str(node) == sampler]
    assert parts == sorted(parts) and parts[0] < 0.5 and parts[-1] == 1
    assert seen["previews"] >= 2
    # the result plays in the node which saved it
    page.evaluate("id => app.canvas.centerOnNode(app.graph.getNodeById(id))", int(save))
    page.wait_for_function("() => [...document.querySelectorAll('video')].some(v => v.videoWidth === 32)")
    assert page.complaints == []
