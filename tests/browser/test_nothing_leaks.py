"""No provider token ever reaches the browser: the whole way through the page, and everything searched that is there.

Chromium keeps a profile on disk for it; the network's log has header fields and bodies; the heap is a snapshot.
"""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import expect

from idp_middleware._demo import Parties
from idp_middleware._demo.stand_ins import CLIENT_SECRET, PROVIDER_TOKENS
from tests.browser.conftest import PATIENCE, Chromium
from tests.browser.test_page import a_second_later, call, card, log_in
from tests.browser.watch import Watch, found

SECRETS = {f"provider token {number}": token for number, token in enumerate(PROVIDER_TOKENS, start=1)}
SECRETS["the middleware's own secret"] = CLIENT_SECRET


CONTROL = "gho_0f1e2d3c4b5a69788796a5b4c3d2e1f0cafe"
PLANT = """async token => {
  window.planted = { token };
  document.body.dataset.planted = token;
  localStorage.setItem("planted", token);
  sessionStorage.setItem("planted", token);
  await fetch("/settings.json", { headers: { "X-Planted": token } });
  console.log(token);
}"""


def test_the_whole_way_shows_the_browser_no_provider_token(
    chromium: Chromium, parties: Parties, tmp_path: Path
) -> None:
    """Log in → accounts → call → stream → not linked → connect → works → reconnect → works → log out."""
    har, profile = tmp_path / "network.har", tmp_path / "profile"
    context = chromium.launch_persistent_context(profile, record_har_path=har, record_har_content="embed")
    context.set_default_timeout(PATIENCE)
    page = context.pages[0]
    watch = Watch(page)
    tokens: list[str] = []
    page.on("request", lambda request: tokens.append(request.headers.get("authorization", "")))

    log_in(page, parties.app_url)
    for name, state in (("GitHub", "Linked"), ("GitLab", "Withdrawn"), ("Bitbucket", "Not linked")):
        expect(card(page, name)).to_contain_text(state)
    expect(card(page, "GitHub")).to_contain_text("Account 101")
    expect(page.locator("#parties")).to_contain_text("GET /api/v2/users/auth0%7Calice")
    watch.look()

    call(page, "Who am I?")
    expect(page.locator("#body")).to_contain_text('"login": "alice"')
    # "Compare them": what the provider got is not what the page sent.
    sent, received = page.locator("#parties mark").all_inner_texts()
    assert received == f"Bearer …{PROVIDER_TOKENS[0][-4:]}"
    assert sent != received
    call(page, "My repositories")
    expect(page.locator("#body")).to_contain_text("repository-1")
    page.get_by_text("Header fields").click()
    expect(page.locator("#fields")).to_contain_text(f"<{parties.app_url}/idp/github/user/repos?page=2>")
    # The provider echoes what it received, the token too: the hardest that it can be made.
    call(page, "Write something")
    expect(page.locator("#body")).to_contain_text('["authorization", "Bearer [redacted]*')
    watch.look()
    call(page, "Watch a stream")
    expect(page.locator("#stream li")).to_have_count(6)
    call(page, "Without a token")
    expect(page.locator("#status")).to_contain_text("401 Unauthorized")
    expect(page.locator("#parties")).to_contain_text("without Authorization")

    for name, verb, refusal in (
        ("Bitbucket", "Connect", "You have no Bitbucket account linked."),
        ("GitLab", "Reconnect", "GitLab has withdrawn the link."),
    ):
        page.get_by_role("radio", name=name).check()
        call(page, "Who am I?")
        expect(page.locator("#status")).to_contain_text("403 Forbidden")
        expect(page.locator("#from")).to_have_text("answered by the middleware itself")
        expect(page.locator("#remedy")).to_contain_text(refusal)
        watch.look(heap=True)
        a_second_later(page)
        page.locator("#remedy").get_by_role("button", name=f"{verb} {name}").click()
        page.get_by_role("button", name="Allow").click()
        expect(page.locator("#notice")).to_have_text(f"{name} is connected.")
        expect(card(page, name)).to_contain_text("Linked")
        expect(page.get_by_role("radio", name=name)).to_be_checked()
        call(page, "Who am I?")
        expect(page.locator("#status")).to_contain_text("200 OK")

    page.evaluate(PLANT, CONTROL)
    watch.look(heap=True)
    page.evaluate("document.body.removeAttribute('data-planted')")

    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("button", name="Log in")).to_be_visible()
    watch.look()
    context.close()

    places = watch.places(har=har, profile=profile)
    assert found(places, SECRETS) == set()
    # All of that would be worth nothing, did the search not find what is there: a token planted in each place, and the
    # page's own (one for each time it was loaded) where they have to be, and nowhere else.
    assert found(places, {"control": CONTROL}) == {(place, "control") for place in places}
    own = list(dict.fromkeys(value.rpartition(".")[2] for value in tokens if value))
    assert len(own) == 3
    assert found(places, {"own": own[-1]}) == {("the network", "own"), ("the heap", "own")}
    assert {place for place, _ in found(places, {str(number): value for number, value in enumerate(own)})} == {
        "the network",
        "the heap",
    }
    # The log has the bodies, too.
    assert "event 5" in places["the network"]
    complaints = [text for text in watch.said if "Failed to load resource: the server responded with" not in text]
    assert complaints == [CONTROL]
