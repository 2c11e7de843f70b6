// An app that is not Python: it serves its page, and hands /idp/… on to the gateway beside it. node app.mjs 3000
// What is in front of a real one (nginx, Caddy, an ingress) does the same with one line; then this needs no code at all.
import { createServer, request } from "node:http";

const gateway = new URL(process.env.GATEWAY_URL ?? "http://127.0.0.1:8001");
const page = `<!doctype html><title>Your repositories</title><ul></ul><script type="module">
  const token = sessionStorage.getItem("access_token"); // the app's own, from its login; never GitHub's
  const answer = await fetch("/idp/github/user/repos", { headers: { Authorization: "Bearer " + token } });
  for (const { name } of await answer.json()) document.querySelector("ul").append(name, document.createElement("br"));
</script>`;

const server = createServer((incoming, outgoing) => {
  if (!incoming.url.startsWith("/idp/")) {
    outgoing.writeHead(200, { "content-type": "text/html; charset=utf-8" }).end(page);
    return;
  }
  const { method, url: path, headers } = incoming;
  const onward = request({ hostname: gateway.hostname, port: gateway.port, method, path, headers }, (answer) => {
    outgoing.writeHead(answer.statusCode, answer.headers);
    answer.pipe(outgoing);
  });
  onward.on("error", () => outgoing.writeHead(502).end());
  incoming.pipe(onward);
});
server.listen(Number(process.argv[2] ?? 3000), "127.0.0.1", () => console.log(`http://127.0.0.1:${server.address().port}`));
