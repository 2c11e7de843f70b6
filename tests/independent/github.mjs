// A GitHub API that we did not write and that keeps what is done to it: the service "github" of emulate.
//
// Settings come as JSON in SETTINGS: { port, seed }. Once it listens, one line of JSON goes to standard output: { url }.
// It ends when standard input does.

import { Server } from 'node:net';
import { createEmulator } from 'emulate';

// By itself it listens to everybody.
const { listen } = Server.prototype;
Server.prototype.listen = function (port, ...rest) {
  return listen.call(this, { port, host: '127.0.0.1' }, ...rest.filter((option) => typeof option === 'function'));
};

const { port, seed } = JSON.parse(process.env.SETTINGS);
const url = `http://127.0.0.1:${port}`;
// What it says in bodies; its `Link` fields name the host that was asked.
await createEmulator({ service: 'github', port, seed, baseUrl: url });
process.stdin.resume().on('end', () => process.exit());
console.log(JSON.stringify({ url }));
