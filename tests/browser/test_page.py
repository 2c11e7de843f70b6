"""The demo's page in a real browser: what people do there, with a mouse and without, and how it looks."""

from __future__ import annotations

import re
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Error, Locator, Page, expect

from idp_middleware._demo import Parties
from tests.browser.conftest import screenshot
from tests.stack import eventually


def log_in(page: Page, url: str, user: str = "auth0|alice") -> None:
    page.goto(url)
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("button", name=user).click()
    expect(page.get_by_role("heading", name="Your accounts")).to_be_visible()
    expect(page.locator("#accounts li")).to_have_count(3)


def card(page: Page, name: str) -> Locator:
    return page.locator("#accounts li").filter(has_text=name)


def call(page: Page, name: str) -> None:
    """Make a call, and wait until all of it has been shown."""
    page.get_by_role("button", name=name).click()
    expect(page.locator("#status")).to_contain_text(" in ")
    expect(page.locator("#witness")).to_have_attribute("aria-busy", "false")


def a_second_later(page: Page) -> None:
    """For a token to be newer than an answer, in whole seconds; else "not linked" stands for five."""
    page.wait_for_timeout(1000)


class TestLogin:
    def test_the_answer_to_a_login_of_somebody_elses_is_refused(self, page: Page, parties: Parties) -> None:
        """Else a link could log a user in as somebody else (RFC 9700 section 4.7)."""
        page.goto(f"{parties.app_url}/?code=made-up&state=made-up")

        expect(page.get_by_role("status").first).to_contain_text("no login that was begun here")
        expect(page.get_by_role("button", name="Log in")).to_be_visible()
        assert page.url == f"{parties.app_url}/"
        assert parties.idp.count("/oauth/token") == 0

    @pytest.mark.parametrize("claim", [{"nonce": "another"}, {"aud": "another"}, {"iss": "https://another.example/"}])
    def test_an_id_token_for_another_login_is_refused(
        self, page: Page, parties: Parties, claim: dict[str, str]
    ) -> None:
        """A code that was put in the place of this login's brings somebody else's (OpenID Connect, section 3.1.3.7)."""
        issue = parties.idp.issue_token

        def for_another(subject: str, *, audience: Any, **claims: Any) -> str:
            return issue(subject, audience=audience, **claims | claim)

        parties.idp.issue_token = for_another  # type: ignore[method-assign]
        page.goto(parties.app_url)
        page.get_by_role("button", name="Log in").click()
        page.get_by_role("button", name="auth0|alice").click()

        expect(page.get_by_role("status").first).to_contain_text("not for this login")
        expect(page.get_by_role("button", name="Log in")).to_be_visible()

    def test_who_does_not_want_to_connect_stays_logged_in(self, page: Page, parties: Parties) -> None:
        """Cancel is an answer, not an accident."""
        log_in(page, parties.app_url)
        page.get_by_role("button", name="Connect Bitbucket").click()
        page.get_by_role("button", name="Cancel").click()

        expect(page.get_by_role("status").first).to_contain_text("bitbucket was not connected: User did not authorize")
        expect(card(page, "Bitbucket")).to_contain_text("Not linked")

    def test_a_token_that_ends_is_told(self, page: Page, parties: Parties) -> None:
        """A page that is left open overnight says what is the matter."""
        log_in(page, parties.app_url)
        parties.idp.rotate_keys()
        page.route("**/seen?*", lambda route: route.fulfill(status=401))

        page.get_by_role("button", name="Who am I?").click()

        expect(page.get_by_role("status").first).to_contain_text("That did not work")

    def test_no_other_page_may_show_it_and_no_other_code_run(self, page: Page, parties: Parties) -> None:
        """What is said in the policy is what keeps a token in memory safe from injected scripts."""
        answer = page.goto(parties.app_url)
        policy = answer.headers["content-security-policy"]
        assert "'unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert "script-src 'self';" in policy
        with pytest.raises(Error, match="TrustedScript"):
            page.evaluate("document.createElement('script').text = 'window.ran = 1'")


class TestCalls:
    def test_a_new_call_takes_the_place_of_one_under_way(self, page: Page, parties: Parties) -> None:
        """Nobody has to wait for a stream; and the provider is let go of."""
        log_in(page, parties.app_url)
        page.get_by_role("button", name="Watch a stream").click()
        expect(page.locator("#stream li").first).to_be_visible()

        call(page, "My repositories")

        expect(page.locator("#body")).to_contain_text("repository-1")
        expect(page.locator("#notice")).to_be_empty()
        (events,) = (request for request in parties.api.requests if request.path == "/events")
        eventually(lambda: events.disconnected)

    def test_what_a_provider_says_is_text(self, page: Page, parties: Parties) -> None:
        """An answer is foreign: it must not become part of the page."""
        log_in(page, parties.app_url)
        markup = "<img src=x onerror=alert(1)>"
        parties.api.respond("/user", body=markup, headers={"Content-Type": "text/html", "X-Note": markup})

        call(page, "Who am I?")

        expect(page.locator("#body")).to_have_text(markup)
        expect(page.locator("#answer img")).to_have_count(0)


def tab_to(page: Page, name: str, *, most: int = 40) -> None:
    """Press Tab until that is focused; each stop on the way shows that it is."""
    for _ in range(most):
        page.keyboard.press("Tab")
        label, outline = page.evaluate(
            """() => {
              const at = document.activeElement, shown = at.matches("input[type=radio]") ? at.nextElementSibling : at;
              if (at === document.body) return ["", ""];
              return [shown.innerText || at.value || "", getComputedStyle(shown).outlineStyle];
            }"""
        )
        if label:
            assert outline != "none", f"{label!r} does not show its focus"
        if label.startswith(name):
            return
    raise AssertionError(f"no way leads to {name!r}")


def test_all_of_it_goes_without_a_mouse(page: Page, parties: Parties) -> None:
    """Tab, the arrow keys, Enter and Space; nothing else. Where the focus is shows at each step."""
    page.goto(parties.app_url)
    expect(page.get_by_role("button", name="Log in")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    tab_to(page, "Log in")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    tab_to(page, "auth0|alice")
    page.keyboard.press("Space")
    expect(page.locator("#accounts li")).to_have_count(3)

    tab_to(page, "GitHub")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("radio", name="GitLab")).to_be_checked()
    tab_to(page, "Who am I?")
    page.keyboard.press("Enter")
    expect(page.locator("#spoken")).to_contain_text("403 Forbidden")
    a_second_later(page)
    tab_to(page, "Reconnect GitLab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Connect gitlab?")).to_be_visible()
    tab_to(page, "Allow")
    page.keyboard.press("Enter")
    expect(page.locator("#notice")).to_have_text("GitLab is connected.")

    expect(page.get_by_role("radio", name="GitLab")).to_be_checked()
    tab_to(page, "Who am I?")
    page.keyboard.press("Space")
    expect(page.locator("#spoken")).to_contain_text("200 OK")
    tab_to(page, "Header fields")
    page.keyboard.press("Enter")
    expect(page.locator("#fields")).to_be_visible()


def test_it_is_legible_everywhere(page: Page, parties: Parties) -> None:
    """axe-core finds nothing against WCAG; nothing is cut off; and people can look at the screenshots."""

    def check(view: str) -> None:
        for scheme, width in (("light", 1200), ("dark", 390)):
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size({"width": width, "height": 844})
            screenshot(page, f"{view}-{scheme}")
            found = Axe().run(page)
            assert found.violations_count == 0, found.generate_report()
        # WCAG 2.2, 1.4.10.
        page.set_viewport_size({"width": 320, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= 320, view

    page.goto(parties.app_url)
    page.get_by_role("button", name="Log in").wait_for()
    check("1-welcome")
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("button", name="auth0|alice").wait_for()
    check("2-login")
    page.get_by_role("button", name="auth0|alice").click()
    expect(page.locator("#accounts li")).to_have_count(3)
    expect(page.locator("#witness")).to_have_attribute("aria-busy", "false")
    check("3-accounts")
    call(page, "Write something")
    page.get_by_text("Header fields").click()
    check("4-call")
    call(page, "Watch a stream")
    check("5-stream")
    page.get_by_role("radio", name="Bitbucket").check()
    call(page, "Who am I?")
    check("6-not-linked")
    page.locator("#remedy button").click()
    page.get_by_role("button", name="Allow").wait_for()
    check("7-connect")


def test_a_stream_is_shown_while_it_comes(page: Page, parties: Parties) -> None:
    """Six parts with 0.4 s between: each is there long before the last, and without a movement where none is wanted."""
    page.emulate_media(reduced_motion="reduce")
    log_in(page, parties.app_url)
    page.get_by_role("button", name="Watch a stream").click()
    first = page.locator("#stream li").first
    expect(first).to_be_visible()
    assert "event 5" not in page.locator("#stream").inner_text()
    assert first.evaluate("each => getComputedStyle(each).animationName") == "none"

    expect(page.locator("#status")).to_contain_text("6 parts in")

    times = [milliseconds(text) for text in page.locator("#stream time").all_inner_texts()]
    assert len(times) == 6
    assert times[-1] - times[0] > 1600


def milliseconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+) (ms|s)", text).groups()  # type: ignore[union-attr]
    return float(number) * (1 if unit == "ms" else 1000)
