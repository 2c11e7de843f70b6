// Logs in at the identity provider, by authorization code and PKCE. The tokens stay in this page's memory.

import * as oauth from "/vendor/index.js";

const { issuer, client_id, audience, scope } = await (await fetch("/settings.json")).json();
const client = { client_id };
// Plain http is for a stand-in on this machine.
const options = { [oauth.allowInsecureRequests]: issuer.startsWith("http://127.0.0.1:") };
const server = await discovered();
const home = `${location.origin}/`;

async function discovered() {
  const url = new URL(issuer);
  return oauth.processDiscoveryResponse(url, await oauth.discoveryRequest(url, options));
}

/** Leave for the login page; or with a `connection`, to connect the account there. */
export async function logIn(connection = null) {
  const [state, nonce, verifier] = [oauth.generateRandomState(), oauth.generateRandomNonce(), oauth.generateRandomCodeVerifier()];
  // All that has to outlive the redirect.
  sessionStorage.setItem("login", JSON.stringify({ state, nonce, verifier }));
  leaveFor(server.authorization_endpoint, {
    client_id,
    response_type: "code",
    redirect_uri: home,
    scope,
    audience,
    state,
    nonce,
    code_challenge: await oauth.calculatePKCECodeChallenge(verifier),
    code_challenge_method: "S256",
    ...(connection && { connection }),
  });
}

/** The tokens, where a login has led back here; else null. */
export async function loggedIn() {
  const url = new URL(location.href);
  if (!url.searchParams.has("state")) return null;
  history.replaceState(null, "", home);
  const { state, nonce, verifier } = JSON.parse(sessionStorage.getItem("login") ?? "{}");
  sessionStorage.removeItem("login");
  const answer = oauth.validateAuthResponse(server, client, url, state);
  const response = await oauth.authorizationCodeGrantRequest(server, client, oauth.None(), answer, home, verifier, options);
  return oauth.processAuthorizationCodeResponse(server, client, response, { expectedNonce: nonce, requireIdToken: true });
}

/** End the session at the identity provider, and come back. */
export function logOut() {
  leaveFor(server.end_session_endpoint, { client_id, post_logout_redirect_uri: home });
}

function leaveFor(endpoint, parameters) {
  location.assign(`${endpoint}?${new URLSearchParams(parameters)}`);
}
