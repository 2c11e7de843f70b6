// Shows what `GET /idp` says: which routes there are, and which of the user's accounts are linked.
//
// Knows that document; what connecting an account takes is for the page to know.

import { byId, make } from "./dom.js";

const NAMES = { github: "GitHub", gitlab: "GitLab", bitbucket: "Bitbucket" };
const STATES = {
  linked: { icon: "✓", label: "Linked" },
  "not-linked": { icon: "–", label: "Not linked", verb: "Connect" },
  "reconnect-required": { icon: "↻", label: "Withdrawn", verb: "Reconnect" },
  ambiguous: { icon: "?", label: "Several fit" },
  unavailable: { icon: "!", label: "Unavailable" },
};
// For a route that the caller may not use, nobody is asked.
const NOT_ALLOWED = { icon: "×", label: "Not allowed" };

/** What people call the provider behind a route. */
export function nameOf(route) {
  return NAMES[route] ?? route;
}

/** Ask, and show the answer. `connect(route)` is called for an account that is to be connected. Returns the routes. */
export async function showAccounts(token, connect) {
  const response = await fetch("/idp", { headers: { Authorization: `Bearer ${token}` } });
  if (!response.ok) throw new Error((await response.json()).title);
  const { routes } = await response.json();
  byId("accounts").replaceChildren(...routes.map((route) => card(route, connect)));
  return routes;
}

function card(route, connect) {
  const { icon, label, verb } = STATES[route.state] ?? NOT_ALLOWED;
  const name = nameOf(route.name);
  return make(
    "li",
    { class: "card", "data-route": route.name, "data-state": route.state ?? "not-allowed" },
    make(
      "div",
      { class: "title" },
      make("h3", {}, name),
      make("span", { class: "badge" }, make("span", { "aria-hidden": "true" }, `${icon} `), label),
    ),
    make("p", {}, what(route)),
    make("p", { class: "soft" }, make("code", {}, `${route.url}/…`)),
    verb ? make("button", { type: "button", class: "main", onclick: () => connect(route) }, `${verb} ${name}`) : null,
  );
}

function what(route) {
  const accounts = route.accounts.map((account) => account.id).join(", ");
  switch (route.state) {
    case "linked":
      return `Account ${accounts || "known to the provider"}. ${expiry(route.expires_at)}`;
    case "not-linked":
      return "You have no account linked here.";
    case "reconnect-required":
      return "It was linked, and the provider takes it no longer.";
    case "ambiguous":
      return `Accounts ${accounts}: a call has to name one.`;
    case "unavailable":
      return "Nobody knows just now. Try again later.";
    default:
      return `You lack ${route.missing_scopes.join(", ") || "permission"}.`;
  }
}

function expiry(at) {
  if (at === null) return "When its token expires is not known.";
  const minutes = Math.round((at - Date.now() / 1000) / 60);
  return `Its token expires in ${minutes < 90 ? `${minutes} min` : `${Math.round(minutes / 60)} h`}.`;
}
