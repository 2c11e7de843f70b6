// Logs in by authorization code and PKCE: RFC 7636, and OpenID Connect Core 1.0 section 3.1.
//
// Knows the identity provider, nothing of the page. Tokens are handed to the caller and kept nowhere here; what has to
// outlive the redirect (state, nonce, verifier) is in sessionStorage until the answer comes, and of no use after that.
// In an app of your own take a library, as examples/spa does: this file is here because the demo may need nothing else.

const UNDER_WAY = "login";

/** Leave for the identity provider. `connection`: to connect an account there; `notice`: what to tell on return. */
export async function logIn(settings, { connection = null, notice = null } = {}) {
  const { authorization_endpoint } = await discovered(settings.issuer);
  const [state, nonce, verifier] = [random(), random(), random()];
  sessionStorage.setItem(UNDER_WAY, JSON.stringify({ state, nonce, verifier, connection, notice }));
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(verifier));
  leaveFor(authorization_endpoint, {
    client_id: settings.client_id,
    response_type: "code",
    redirect_uri: here(),
    scope: settings.scope,
    audience: settings.audience,
    state,
    nonce,
    code_challenge: base64url(new Uint8Array(digest)),
    code_challenge_method: "S256",
    ...(connection && { connection }),
  });
}

/** What a login has brought, if this page is where one leads back to; else null. */
export async function loggedIn(settings) {
  const answer = new URLSearchParams(location.search);
  const begun = JSON.parse(sessionStorage.getItem(UNDER_WAY) ?? "null");
  sessionStorage.removeItem(UNDER_WAY);
  if (!answer.has("state")) return null;
  // Out of the address bar and the history: it would be sent along, or tried again.
  history.replaceState(null, "", location.pathname);
  if (answer.get("state") !== begun?.state) throw new Error("this is the answer to no login that was begun here");
  if (answer.has("error")) {
    const why = answer.get("error_description") ?? answer.get("error");
    if (begun.connection === null) throw new Error(why);
    // The user is still who they were, only the page has forgotten.
    await logIn(settings, { notice: `${begun.connection} was not connected: ${why}` });
    return new Promise(() => {});
  }
  const tokens = await exchanged(settings, answer.get("code"), begun.verifier);
  const claims = verified(tokens.id_token, settings, begun.nonce);
  return { token: tokens.access_token, idToken: tokens.id_token, claims, ...begun };
}

/** Leave, and end the session at the identity provider. */
export async function logOut(settings, idToken) {
  const { end_session_endpoint } = await discovered(settings.issuer);
  leaveFor(end_session_endpoint, {
    client_id: settings.client_id,
    id_token_hint: idToken,
    post_logout_redirect_uri: here(),
  });
}

/** The claims of a JWT, which only whoever it is for may rely on. */
export function claimsOf(token) {
  const bytes = atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/"));
  return JSON.parse(new TextDecoder().decode(Uint8Array.from(bytes, (char) => char.charCodeAt(0))));
}

async function exchanged(settings, code, verifier) {
  const { token_endpoint } = await discovered(settings.issuer);
  const body = new URLSearchParams({
    grant_type: "authorization_code",
    client_id: settings.client_id,
    redirect_uri: here(),
    code,
    code_verifier: verifier,
  });
  const response = await fetch(token_endpoint, { method: "POST", body });
  const tokens = await response.json();
  if (!response.ok) throw new Error(tokens.error_description ?? tokens.error);
  return tokens;
}

// Section 3.1.3.7. It came straight from the token endpoint, so its signature may be left alone (number 6).
function verified(idToken, settings, nonce) {
  const claims = claimsOf(idToken);
  const good =
    claims.iss === settings.issuer &&
    claims.aud === settings.client_id &&
    claims.nonce === nonce &&
    claims.exp > Date.now() / 1000;
  if (!good) throw new Error("the identity provider's answer is not for this login");
  return claims;
}

async function discovered(issuer) {
  const metadata = await (await fetch(`${issuer}.well-known/openid-configuration`)).json();
  // Else one provider could answer for another (RFC 8414 section 3.3).
  if (metadata.issuer !== issuer) throw new Error("the identity provider is not who it should be");
  return metadata;
}

function leaveFor(url, parameters) {
  location.assign(`${url}?${new URLSearchParams(parameters)}`);
}

function here() {
  return location.origin + location.pathname;
}

function random() {
  return base64url(crypto.getRandomValues(new Uint8Array(32)));
}

function base64url(bytes) {
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}
