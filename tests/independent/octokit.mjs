// What an app does with Octokit: list, page through and create things.
//
// Settings come as JSON in SETTINGS: { baseUrl, auth, names }. What it found goes to standard output, as JSON, with every
// URL that it asked for.

import { Octokit } from '@octokit/rest';

const { baseUrl, auth, names } = JSON.parse(process.env.SETTINGS);
const urls = [];
const octokit = new Octokit({
  baseUrl,
  auth,
  request: {
    fetch: (url, options) => {
      urls.push(`${url}`);
      return fetch(url, options);
    },
  },
});

const { data: user } = await octokit.rest.users.getAuthenticated();
for (const name of names) {
  await octokit.rest.repos.createForAuthenticatedUser({ name, private: true, auto_init: true });
}
const repos = await octokit.paginate(octokit.rest.repos.listForAuthenticatedUser, { per_page: 2 });
const repo = { owner: user.login, repo: names[0] };
for (const title of ['first', 'second', 'third']) {
  await octokit.rest.issues.create({ ...repo, title, body: 'a – "body"' });
}
const titles = [];
for await (const { data } of octokit.paginate.iterator(octokit.rest.issues.listForRepo, { ...repo, per_page: 1 })) {
  titles.push(data.map((issue) => issue.title));
}
const { data: written } = await octokit.rest.repos.createOrUpdateFileContents({
  ...repo,
  path: 'docs/a b.txt',
  message: 'add',
  content: Buffer.from('héllo').toString('base64'),
});
const { data: read } = await octokit.rest.repos.getContent({ ...repo, path: 'docs/a b.txt' });
const missing = await octokit.rest.repos.get({ owner: user.login, repo: 'missing' }).catch((error) => error.status);

console.log(
  JSON.stringify({
    login: user.login,
    repos: repos.map(({ name }) => name),
    titles,
    sha: written.content.sha === read.sha,
    content: Buffer.from(read.content, 'base64').toString(),
    missing,
    urls,
  }),
);
