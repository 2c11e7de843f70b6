// The page: who is logged in, what can be done, and what happens then.
//
// The tokens are in `session`, in memory and nowhere else: a reload forgets them, and a click brings new ones.

import { nameOf, showAccounts } from "./accounts.js";
import { CALLS, makeCall, offer } from "./calls.js";
import { byId, make } from "./dom.js";
import { loggedIn, logIn, logOut } from "./login.js";
import { seen, showWitness } from "./witness.js";

const LATELY = 8;
// Seconds to wait for a new link to be seen: "not linked" is remembered for five, unless the login is newer than that.

const settings = await (await fetch("settings.json")).json();
let session = null;
let latest = 0;

byId("log-in").addEventListener("click", () => attempt(() => logIn(settings)));
byId("log-out").addEventListener("click", () => attempt(() => logOut(settings, session.idToken)));
await attempt(async () => {
  session = await loggedIn(settings);
});
byId("welcome").hidden = session !== null;
byId("inside").hidden = session === null;
if (session !== null) await attempt(enter);

async function enter() {
  byId("user").textContent = session.claims.name ?? session.claims.sub;
  byId("user").hidden = byId("log-out").hidden = false;
  if (session.notice) notice(session.notice);
  const routes = await accounts();
  const chosen = session.connection ?? routes[0].name;
  byId("routes").append(...routes.map((route) => choice(route, route.name === chosen)));
  byId("calls").append(...CALLS.map(button));
  if (session.connection) await awaitConnected(session.connection);
}

async function accounts() {
  const sent = { method: "GET", url: "/idp", token: session.token, provider: "A provider" };
  return witnessed(sent, () => showAccounts(session.token, connect));
}

async function awaitConnected(connection) {
  const name = nameOf(connection);
  for (let seconds = 0; seconds < LATELY; seconds++) {
    const routes = await accounts();
    if (routes.some((route) => route.connection === connection && route.state === "linked")) {
      return notice(`${name} is connected.`);
    }
    notice(`${name} is connected; the middleware takes a few seconds to notice …`);
    await new Promise((done) => setTimeout(done, 1000));
  }
  notice(`${name} is connected, but the middleware has not noticed. Reload to try again.`);
}

function connect({ connection }) {
  return attempt(() => logIn(settings, { connection }));
}

function choice(route, checked) {
  const input = make("input", { type: "radio", name: "route", value: route.name, checked });
  return make("label", {}, input, make("span", {}, nameOf(route.name)));
}

function button(call) {
  return make(
    "button",
    { type: "button", onclick: () => attempt(() => run(call)) },
    make("span", {}, call.label),
    make("code", {}, `${call.method} ${call.path.split("?")[0]}`),
  );
}

async function run(call) {
  const route = document.querySelector("input[name=route]:checked").value;
  const url = `/idp/${route}${call.path}`;
  const token = call.anonymous ? null : session.token;
  const problem = await witnessed({ method: call.method, url, token, provider: nameOf(route) }, () =>
    makeCall(call, url, token),
  );
  if (problem !== null) remedy(problem, route);
}

// Do something, and show it from every side. What made way for the next is not waited for.
async function witnessed(sent, act) {
  const mine = ++latest;
  byId("witness").ariaBusy = "true";
  try {
    const before = await seen(session.token);
    const result = await act();
    showWitness({ ...sent, events: (await seen(session.token, before.next)).events });
    return result;
  } finally {
    if (mine === latest) byId("witness").ariaBusy = "false";
  }
}

function remedy(problem, route) {
  const name = nameOf(route);
  const again = () => connect({ connection: route });
  if (problem === "identity-not-linked") offer(`You have no ${name} account linked.`, `Connect ${name}`, again);
  if (problem === "reconnect-required") offer(`${name} has withdrawn the link.`, `Reconnect ${name}`, again);
}

async function attempt(what) {
  try {
    await what();
  } catch (error) {
    // A call that made way for the next.
    if (error.name !== "AbortError") notice(`That did not work: ${error.message}.`);
  }
}

function notice(text) {
  byId("notice").textContent = text;
}
