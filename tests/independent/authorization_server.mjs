// An authorization server that we did not write, oidc-provider, with RFC 8693 registered as a grant of its own, and in
// front of the one endpoint of Auth0's Management API that asks it whether a token is good.
//
// Settings come as JSON in OIDC_SETTINGS: { clients, users }. Once it listens, one line of JSON goes to standard
// output: { url, tokens }, a token for each user. It ends when standard input does.

import { createServer } from 'node:http';
import { Provider, errors } from 'oidc-provider';

const EXCHANGE = 'urn:ietf:params:oauth:grant-type:token-exchange';
const ACCESS_TOKEN = 'urn:ietf:params:oauth:token-type:access_token';
const TARGETS = ['orders', 'billing', 'https://orders.example'];
const { clients, users } = JSON.parse(process.env.OIDC_SETTINGS);

const server = createServer((req, res) => answer(req, res));
await new Promise((listening) => server.listen(0, '127.0.0.1', listening));
const url = `http://127.0.0.1:${server.address().port}`;

const provider = new Provider(url, {
  clients: clients.map((client) => ({
    redirect_uris: [],
    response_types: [],
    grant_types: ['client_credentials', EXCHANGE],
    ...client,
  })),
  scopes: ['read', 'write', 'read:users', 'read:user_idp_tokens'],
  enabledJWA: { clientAuthSigningAlgValues: ['RS256', 'PS256', 'ES256', 'Ed25519', 'EdDSA'] },
  features: {
    clientCredentials: { enabled: true },
    devInteractions: { enabled: false },
    introspection: { enabled: true, allowedPolicy: () => true },
  },
  findAccount: (ctx, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
  routes: { token: '/oauth/token' },
  ttl: { AccessToken: 3600, ClientCredentials: 600 },
});

async function exchange(ctx) {
  const { client, params } = ctx.oidc;
  if (!params.subject_token || !params.subject_token_type) throw new errors.InvalidRequest('no subject token');
  if (params.subject_token_type !== ACCESS_TOKEN) throw new errors.InvalidRequest('subject_token_type');
  const subject = await provider.AccessToken.find(params.subject_token);
  if (!subject) throw new errors.InvalidRequest('the subject token is not good');
  const targets = [params.audience, params.resource].flat().filter((target) => target !== undefined);
  for (const target of targets) {
    if (!TARGETS.includes(target)) throw new errors.InvalidTarget();
  }
  const token = new provider.AccessToken({ accountId: subject.accountId, client, scope: params.scope ?? 'read' });
  ctx.body = {
    access_token: await token.save(),
    issued_token_type: ACCESS_TOKEN,
    token_type: 'Bearer',
    expires_in: token.expiration,
    scope: token.scope,
  };
}
provider.registerGrantType(
  EXCHANGE,
  exchange,
  ['audience', 'resource', 'scope', 'subject_token', 'subject_token_type', 'requested_token_type'],
  ['audience', 'resource'],
);
const oidc = provider.callback();

async function answer(req, res) {
  if (req.url.startsWith('/api/v2/users/')) return userLookUp(req, res);
  if (req.headers['content-type'] === 'application/json') {
    // Auth0 takes JSON here, this server only forms.
    const chunks = [];
    for await (const chunk of req) chunks.push(chunk);
    req.headers['content-type'] = 'application/x-www-form-urlencoded';
    req.body = JSON.parse(Buffer.concat(chunks));
  }
  return oidc(req, res);
}

async function userLookUp(req, res) {
  const [, bearer] = /^Bearer (.+)$/.exec(req.headers.authorization ?? '') ?? [];
  const token = bearer && (await provider.ClientCredentials.find(bearer));
  const [path] = req.url.split('?');
  const user = users[decodeURIComponent(path.slice('/api/v2/users/'.length))];
  const [status, body] = !token
    ? [401, { statusCode: 401, error: 'Unauthorized', message: 'Invalid token' }]
    : user
      ? [200, { identities: user }]
      : [404, { statusCode: 404, error: 'Not Found', message: 'The user does not exist.' }];
  res.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
}

const tokens = {};
const client = await provider.Client.find(clients[0].client_id);
for (const user of Object.keys(users)) {
  tokens[user] = await new provider.AccessToken({ accountId: user, client, scope: 'read write' }).save();
}
process.stdin.resume().on('end', () => process.exit());
console.log(JSON.stringify({ url, tokens }));
