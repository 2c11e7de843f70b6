// Shows one call from every side: what this page sent, and what the stand-ins were asked for it.
//
// Knows the app's `/seen`, where tokens are masked before they come here.

import { byId, make } from "./dom.js";
import { claimsOf } from "./login.js";

/** How much the stand-ins have seen so far; with `after`, what they saw since. */
export async function seen(token, after = 0) {
  const response = await fetch(`/seen?after=${after}`, { headers: { Authorization: `Bearer ${token}` } });
  if (!response.ok) throw new Error("the app does not tell what the stand-ins saw");
  return response.json();
}

/** Show it beside the page's own side. `token` is what was sent, if any. */
export function showWitness({ method, url, token, provider, events }) {
  const of = (party) => events.filter((event) => event.party === party).map(lines);
  byId("parties").replaceChildren(
    party("Your browser sent", [mine(method, url, token)]),
    party("Auth0 was asked", of("idp"), "Nothing. No token was needed, or the middleware still had it."),
    party(`${provider} received`, of("provider"), "Nothing. The call ended at the middleware."),
  );
  byId("witness").hidden = false;
}

function mine(method, url, token) {
  if (token === null) return [`${method} ${url}`, soft("without Authorization")];
  const { sub, aud, scope } = claimsOf(token);
  return [
    `${method} ${url}`,
    authorization(`Bearer …${token.slice(-4)}`),
    soft(`a token of ${sub}, for ${[aud].flat()[0]} alone, with ${scope}`),
  ];
}

function lines(event) {
  return [
    event.request,
    event.authorization ? authorization(event.authorization) : soft("with the middleware’s own credentials"),
    event.size ? soft(`and ${event.size} bytes`) : null,
    event.cookie ? soft(`Cookie: ${event.cookie}`) : null,
  ];
}

function party(name, requests, nothing = "") {
  const entries = requests.map((request) => make("p", {}, ...request.flatMap(onItsLine)));
  return make(
    "div",
    { class: "card" },
    make("h3", {}, name),
    ...(entries.length ? entries : [make("p", { class: "soft" }, nothing)]),
  );
}

function onItsLine(part) {
  if (part === null) return [];
  return [typeof part === "string" ? make("code", {}, part) : part, make("br")];
}

const authorization = (value) => make("code", {}, "Authorization: ", make("mark", {}, value));
const soft = (text) => make("span", { class: "soft" }, text);
