// Shows the user's repositories; and where the account is not linked, the way to link it.

import { loggedIn, logIn, logOut } from "./login.js";

const byId = (id) => document.getElementById(id);
const session = await loggedIn().catch((error) => say(`The login failed: ${error.message}`));

byId("log-out").addEventListener("click", logOut);
byId("log-out").hidden = !session;
if (session) await show();
else offer("Log in", logIn);

async function show() {
  const response = await fetch("/idp/github/user/repos", { headers: { Authorization: `Bearer ${session.access_token}` } });
  const answer = await response.json();
  if (response.ok) {
    byId("repositories").replaceChildren(...answer.map(({ name }) => Object.assign(document.createElement("li"), { textContent: name })));
    return say(`${answer.length} of them.`);
  }
  say(answer.title);
  // What the middleware answers itself is a problem document: its type says what can be done (RFC 9457).
  const problem = answer.type?.split(/[:/#]/).at(-1);
  if (problem === "caller-unauthenticated") offer("Log in again", logIn);
  if (problem === "identity-not-linked") offer("Connect GitHub", () => logIn(answer.connection));
  if (problem === "reconnect-required") offer("Reconnect GitHub", () => logIn(answer.connection));
}

function say(text) {
  byId("message").textContent = text;
}

function offer(label, act) {
  const button = byId("act");
  button.textContent = label;
  button.onclick = () => act();
  button.hidden = false;
}
