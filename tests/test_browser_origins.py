"""A foreign page in a real browser: it cannot read, post to, frame or rebind its way into the server."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.test_browser import open_browser
from tests.ui.serving import serving

pytestmark = [pytest.mark.slow, pytest.mark.browser]

EVIL = b"""<!doctype html><meta charset=utf-8><title>evil</title><h1>evil</h1>
<script>
async function attempt(url, options) {
  try {
    const answer = await fetch(url, options);
    return {type: answer.type, status: answer.status, text: (await answer.text()).slice(0, 2000)};
  } catch (error) { return {error: String(error)}; }
}
async function framed(url) {
  const frame = document.createElement("iframe");
  frame.src = url;
  document.body.append(frame);
  await new Promise((done) => { frame.onload = done; setTimeout(done, 4000); });
  try { return frame.contentDocument ? frame.contentDocument.body.innerText : "opaque"; } catch (error) { return "opaque"; }
}
</script>"""


@contextmanager
def foreign_site():
    """A web site of somebody else, on another port of the loopback address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(EVIL)

        def log_message(self, *_):
            pass

    site = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=site.serve_forever, daemon=True)
    thread.start()
    try:
        yield site.server_address[1]
    finally:
        site.shutdown()
        site.server_close()


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """A browser for which evil.example and app.example are names of this machine, as after DNS rebinding."""
    names = "MAP evil.example 127.0.0.1, MAP app.example 127.0.0.1"
    driver = open_browser(tmp_path_factory.mktemp("browser"), "zh-CN", f"--host-resolver-rules={names}")
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def evil():
    with foreign_site() as port:
        yield port


@pytest.fixture(scope="module")
def server(tmp_path_factory, evil):
    folder = tmp_path_factory.mktemp("server")
    allowed = f"http://app.example:{evil}"
    with serving(folder, "--data-dir", str(folder), "--allow-origin", allowed) as (address, _):
        yield address


def ask(driver, url: str, **options) -> dict:
    code = "const done = arguments[arguments.length - 1]; attempt(arguments[0], arguments[1]).then(done)"
    return driver.execute_async_script(code, url, options)


HELLO = json.dumps({"messages": [{"role": "user", "content": "你好"}]})
JOIN = json.dumps({"data": [None], "fn_index": 0, "session_hash": "abc"})


@pytest.mark.parametrize("site", ["evil.example", "127.0.0.1", "localhost"])
def test_a_foreign_page_reads_and_posts_nothing(driver, server, evil, site):
    driver.get(f"http://{site}:{evil}/")
    for path in ("/", "/config", "/v1/models", "/metrics", "/gradio_api/info"):
        assert "error" in ask(driver, server + path), path
        opaque = ask(driver, server + path, mode="no-cors", credentials="include")
        assert not opaque.get("text"), path
    for path, body in (("/v1/chat/completions", HELLO), ("/gradio_api/queue/join", JOIN)):
        headers = {"Content-Type": "application/json"}
        assert "error" in ask(driver, server + path, method="POST", body=body, headers=headers)
        simple = ask(driver, server + path, method="POST", body=body, mode="no-cors")
        assert not simple.get("text")


def test_nothing_of_it_was_computed(driver, server, evil):
    """Counted by the server itself, for a browser shows nothing of a refused request."""
    from urllib.request import urlopen

    replies = [line for line in urlopen(server + "/metrics").read().decode().splitlines() if "replies_total{" in line]
    assert all(line.endswith(" 0.0") for line in replies), replies


@pytest.mark.parametrize("site", ["evil.example", "127.0.0.1"])
def test_a_foreign_page_frames_nothing(driver, server, evil, site):
    driver.get(f"http://{site}:{evil}/")
    code = "const done = arguments[arguments.length - 1]; framed(arguments[0]).then(done)"
    driver.execute_async_script(code, server + "/")
    frame = driver.find_elements("css selector", "iframe")[0]
    driver.switch_to.frame(frame)
    try:
        assert driver.find_elements("css selector", "#message textarea, gradio-app") == []
    finally:
        driver.switch_to.default_content()


def test_a_rebound_name_gets_nothing(driver, server):
    port = server.rsplit(":", 1)[1]
    driver.get(f"http://evil.example:{port}/")
    assert "--allow-host" in driver.find_element("css selector", "body").text
    assert driver.find_elements("css selector", "gradio-app") == []
    code = "const done = arguments[1]; fetch(arguments[0]).then((a) => done(a.status), () => done(0))"
    assert driver.execute_async_script(code, "/v1/models") == 421


def test_an_allowed_application_uses_the_api_and_nothing_else(driver, server, evil):
    driver.get(f"http://app.example:{evil}/")
    headers = {"Content-Type": "application/json", "Authorization": "Bearer x"}
    answer = ask(driver, server + "/v1/chat/completions", method="POST", body=HELLO, headers=headers)
    assert answer.get("status") == 200, answer
    assert json.loads(answer["text"])["choices"][0]["message"]["content"]
    assert "error" in ask(driver, server + "/config")
    assert "error" in ask(driver, server + "/gradio_api/queue/join", method="POST", body=JOIN, headers=headers)


def test_a_link_opens_the_page_and_the_page_works(driver, server, evil):
    driver.get(f"http://evil.example:{evil}/")
    driver.get_log("browser")  # what was refused before
    driver.execute_script("location.href = arguments[0]", server + "/")
    driver.implicitly_wait(20)
    assert driver.find_elements("css selector", "#message textarea")
    driver.implicitly_wait(0)
    refused = [entry["message"] for entry in driver.get_log("browser") if "Content Security Policy" in entry["message"]]
    assert not refused, refused
