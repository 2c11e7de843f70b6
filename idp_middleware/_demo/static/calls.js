// Makes calls under /idp and shows what comes back, as it comes.
//
// Knows HTTP and problem documents; nothing of who is logged in, or what a problem's remedy takes.

import { byId, make } from "./dom.js";

export const CALLS = [
  { label: "Who am I?", method: "GET", path: "/user" },
  { label: "My repositories", method: "GET", path: "/user/repos" },
  { label: "Write something", method: "POST", path: "/echo/issues", body: { title: "Hello from the page" } },
  { label: "Watch a stream", method: "GET", path: "/events?chunks=6&delay=0.4" },
  { label: "Without a token", method: "GET", path: "/user", anonymous: true },
];

let underWay = null;

/** Make a call; a call that is still under way is broken off. Returns the name of the problem, if it came to one. */
export async function makeCall(call, url, token) {
  underWay?.abort();
  underWay = new AbortController();
  const headers = token === null ? {} : { Authorization: `Bearer ${token}` };
  if (call.body) headers["Content-Type"] = "application/json";
  const began = performance.now();
  const since = () => performance.now() - began;
  const response = await fetch(url, {
    method: call.method,
    headers,
    body: call.body && JSON.stringify(call.body),
    signal: underWay.signal,
  });
  showHead(response, since());
  const parts = await read(response, since);
  const text = parts.map((part) => part.text).join("");
  const kind = response.headers.get("content-type") ?? "";
  if (byId("stream").hidden) byId("body").textContent = kind.includes("json") ? legible(JSON.parse(text)) : text;
  const summary = `${response.status} ${response.statusText}, ${size(parts)} in ${duration(since())}`;
  byId("status").textContent = summary;
  byId("spoken").textContent = summary;
  return kind.startsWith("application/problem+json") ? problemName(JSON.parse(text).type) : null;
}

function showHead(response, after) {
  const ours = response.headers.get("proxy-status")?.includes("error=");
  const answer = byId("answer");
  answer.hidden = false;
  answer.dataset.status = `${Math.floor(response.status / 100)}xx`;
  byId("status").textContent = `${response.status} ${response.statusText} after ${duration(after)} …`;
  byId("from").textContent = ours ? "answered by the middleware itself" : "answered by the provider";
  byId("body").textContent = "";
  byId("remedy").hidden = true;
  const stream = byId("stream");
  stream.replaceChildren();
  stream.hidden = !response.headers.get("content-type")?.startsWith("text/event-stream");
  byId("fields").replaceChildren(
    ...[...response.headers].flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]),
  );
}

// Each part with the time it came: a proxy that buffers would show here.
async function read(response, since) {
  const parts = [];
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let part; !(part = await reader.read()).done; ) {
    parts.push({ text: part.value, at: since() });
    if (byId("stream").hidden) continue;
    const { text, at } = parts.at(-1);
    byId("stream").append(make("li", {}, make("time", {}, duration(at)), make("code", {}, text.trim())));
  }
  return parts;
}

// Pairs of words, as header fields are, on one line.
function legible(document) {
  return JSON.stringify(document, null, 2).replaceAll(/\[\s+("(?:\\.|[^"\\])*"),\s+("(?:\\.|[^"\\])*")\s+\]/g, "[$1, $2]");
}

function size(parts) {
  return parts.length === 1 ? `${parts[0].text.length} characters` : `${parts.length} parts`;
}

function duration(milliseconds) {
  return milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(2)} s`;
}

function problemName(type) {
  return type.split(/[:/#]/).at(-1);
}

/** Offer what can be done about an answer. */
export function offer(what, label, act) {
  const remedy = byId("remedy");
  const button = make("button", { type: "button", class: "main", onclick: act }, label);
  remedy.replaceChildren(make("p", {}, what), button);
  remedy.hidden = false;
}
