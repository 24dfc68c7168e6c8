// Drives the status page in a headless Chromium over the DevTools protocol, as a user would: looks, clicks, waits.
// Started by scripts/check-page, which gives by the environment: GATE (the gateway's port), FUSEGATE, CHROMIUM, SCRATCH
// (a directory that goes away), MODULES (where npm has put ws and axe-core), and SHOTS for pictures, if wanted.
// Must not know: how the page does what it does, beyond what a user sees and its table cells.

import { spawn } from "node:child_process";
import { existsSync, mkdirSync, openSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import net from "node:net";

const { GATE, FUSEGATE, CHROMIUM, SCRATCH, MODULES, SHOTS } = process.env;
const require = createRequire(`${MODULES}/`);
const WebSocket = require("ws");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const HOME = `http://127.0.0.1:${GATE}/`;
const LIMIT_MS = 20000;

const children = [];
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const fail = (why) => { throw new Error(why); };

function start(name, command, ...args) {
  const log = openSync(`${SCRATCH}/${name}.log`, "a");
  const child = spawn(command, args, { stdio: ["ignore", log, log], cwd: SCRATCH });
  child.ended = new Promise((done) => child.on("exit", done));
  children.push(child);
  return child;
}

async function end(child) {
  child.kill();
  await child.ended;
}

async function until(what, holds) {
  const by = Date.now() + LIMIT_MS;
  for (;;) {
    const found = await holds();
    if (found) return found;
    if (Date.now() > by) fail(`not within ${LIMIT_MS / 1000} s: ${what}`);
    await sleep(100);
  }
}

const freePort = () => new Promise((done) => {
  const server = net.createServer().listen(0, "127.0.0.1", () => { const { port } = server.address(); server.close(() => done(port)); });
});
const accepts = (port) => new Promise((done) => {
  const socket = net.connect(port, "127.0.0.1", () => { socket.destroy(); done(true); }).on("error", () => done(false));
});

// ---- the browser

async function browse() {
  const profile = `${SCRATCH}/profile`;
  const root = process.getuid() === 0 ? ["--no-sandbox"] : [];
  start("chromium", CHROMIUM, "--headless=new", "--remote-debugging-port=0", `--user-data-dir=${profile}`, "--no-first-run",
    "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions", "--disable-background-networking",
    "--disable-component-update", "--hide-scrollbars", "--log-level=3", ...root, "about:blank");
  const file = `${profile}/DevToolsActivePort`;
  await until("Chromium listens", () => existsSync(file) && readFileSync(file, "utf8").includes("\n"));
  const [port, path] = readFileSync(file, "utf8").split("\n");
  const socket = new WebSocket(`ws://127.0.0.1:${port}${path}`);
  await new Promise((done, failed) => { socket.on("open", done); socket.on("error", failed); });
  const waiting = new Map(), errors = [];
  let serial = 0, session;
  socket.on("message", (text) => {
    const said = JSON.parse(text);
    if (said.id) {
      const [done, failed] = waiting.get(said.id);
      waiting.delete(said.id);
      if (said.error) failed(new Error(said.error.message)); else done(said.result);
    } else if (said.method === "Runtime.exceptionThrown") errors.push(said.params.exceptionDetails.exception?.description ?? said.params.exceptionDetails.text);
    else if (said.method === "Runtime.consoleAPICalled" && said.params.type === "error") errors.push(said.params.args.map((arg) => arg.value ?? arg.description).join(" "));
    else if (said.method === "Log.entryAdded" && said.params.entry.level === "error") errors.push(`${said.params.entry.text} ${said.params.entry.url ?? ""}`);
  });
  const send = (method, params = {}) => new Promise((done, failed) => {
    serial += 1;
    waiting.set(serial, [done, failed]);
    socket.send(JSON.stringify({ id: serial, method, params, sessionId: session }));
  });
  const { targetId } = await send("Target.createTarget", { url: "about:blank" });
  session = (await send("Target.attachToTarget", { targetId, flatten: true })).sessionId;
  for (const domain of ["Page", "Runtime", "Log", "Network"]) await send(`${domain}.enable`);
  const run = async (expression) => {
    const { result, exceptionDetails } = await send("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true });
    if (exceptionDetails) fail(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
  };
  return { send, run, errors };
}

const { send, run, errors } = await browse().catch((error) => { console.error(error); children.forEach((child) => child.kill()); process.exit(1); });

async function size(width, height) {
  await send("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: 1, mobile: false });
}
async function scheme(value) {
  await send("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value }] });
}
async function shot(name) {
  if (!SHOTS) return;
  mkdirSync(SHOTS, { recursive: true });
  const { data } = await send("Page.captureScreenshot", { format: "png" });
  writeFileSync(`${SHOTS}/${name}.png`, Buffer.from(data, "base64"));
}
async function judge(what) {
  const found = await run(`(async () => { ${axe}; const found = await window.axe.run(document, { resultTypes: ["violations"] });
    return found.violations.filter((one) => ["serious", "critical"].includes(one.impact))
      .map((one) => one.id + ": " + one.help + " at " + one.nodes.map((node) => node.target.join(" ")).join(", ")); })()`);
  if (found.length) fail(`${what}: axe finds\n${found.join("\n")}`);
}
const sees = (text) => until(`the page says "${text}"`, () => run(`(document.body?.innerText ?? "").includes(${JSON.stringify(text)})`));
const row = (port) => `[...document.querySelectorAll("tbody tr")].find((row) => row.textContent.includes(":${port}"))`;
const stateOf = (port) => run(`${row(port)}?.querySelector(".state").textContent ?? ""`);
const shows = (port, pattern) => until(`${port} shows ${pattern}`, async () => pattern.test(await stateOf(port)));
const press = (expression) => run(`(() => { const button = ${expression}; if (!button || button.disabled) throw new Error("nothing to press"); button.click(); })()`);
const dialog = () => run(`document.querySelector("dialog").open`);
const silent = (when) => errors.length === 0 || fail(`errors in the console, ${when}:\n${errors.join("\n")}`);

const upstream = (port) => start(`upstream ${port}`, "python3", "-c", `
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "3"); self.end_headers(); self.wfile.write(b"ok\\n")
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer.allow_reuse_address = True
http.server.ThreadingHTTPServer(("127.0.0.1", ${port}), Handler).serve_forever()`);

async function main() {
  const [a, b] = [await freePort(), await freePort()];
  const section = `gateway:\n  listen: 127.0.0.1:${GATE}\n  workers: 1\n`;
  const both = `upstreams: [http://127.0.0.1:${a}, http://127.0.0.1:${b}]`;
  const services = `user-service:
  ${both}
  retries: {attempts: 0}
  circuit_breaker: {failure_threshold: 3, cooldown: 4s}
orders:
  upstreams: [http://127.0.0.1:${a}/orders, {url: "http://127.0.0.1:${b}/orders", backup: true}]
  health_check: {path: /up, interval: 1s, timeout: 500ms}
`;
  const config = `${SCRATCH}/config.yaml`;
  writeFileSync(config, section + services);
  const serve = () => start("gateway", FUSEGATE, "-c", config);
  let gateway = serve();
  let [one, two] = [upstream(a), upstream(b)];
  for (const port of [a, b, GATE]) await until(`port ${port} listens`, () => accepts(port));
  const traffic = setInterval(() => {
    for (const service of ["user-service", "user-service", "orders"]) fetch(`${HOME}v1/proxy/${service}/`).then((answer) => answer.arrayBuffer()).catch(() => {});
  }, 50);

  // All is well.
  await size(1180, 800);
  await scheme("light");
  await send("Page.navigate", { url: HOME });
  await sees("live");
  await until("a rate", () => run(`document.getElementById("f-rate").textContent !== "–"`));
  await shows(a, /closed/);
  await until("health checks have a verdict", () => run(`(document.body?.innerText ?? "").includes("healthy")`));
  await judge("all is well, light");
  await shot("light");
  await scheme("dark");
  await judge("all is well, dark");
  await shot("dark");
  await scheme("light");

  // One dies, is seen, and comes back.
  await end(two);
  await shows(b, /open, probe in \d+ s/);
  await sees("failures in a row");
  await until("it is said to a screen reader", () => run(`document.getElementById("say").textContent.includes("open")`));
  await judge("one is open");
  await shot("open");
  two = upstream(b);
  await shows(b, /closed/);
  console.log("  a dead upstream is shown open with its countdown, and closed when it is back");

  // By hand, with a confirmation that can be declined.
  const trip = `${row(a)}.querySelector("button")`;
  await press(trip);
  if (!await dialog()) fail("no confirmation");
  await judge("the dialog");
  await press(`document.getElementById("ask-no")`);
  if (await dialog() || !/closed/.test(await stateOf(a))) fail("declined, and yet something happened");
  await press(trip);
  await run(`document.getElementById("ask-reason").value = "<b>new disks</b>"`);
  await shot("dialog");
  await press(`document.getElementById("ask-yes")`);
  await shows(a, /open, until a reset/);
  await sees("<b>new disks</b>");
  await press(`${row(a)}.querySelector("button")`);
  await press(`document.getElementById("ask-yes")`);
  await shows(a, /closed/);
  console.log("  trip and reset work, with a confirmation");

  // Reloads, good and bad.
  const reload = async () => { await press(`document.getElementById("reload")`); await press(`document.getElementById("ask-yes")`); };
  await reload();
  await sees("unchanged");
  await until("the dialog is closed", async () => !await dialog());
  silent("while everything worked");
  writeFileSync(config, `${section}${services}orders2:\n  upstream: []\n`);
  await reload();
  await sees("Nothing was changed");
  await until("the dialog tells the message too", () => run(`document.getElementById("ask-error").textContent.includes("config.yaml:")`));
  await press(`document.getElementById("ask-no")`);
  errors.length = 0; // the 422, which a browser logs
  await judge("a failed reload");
  await shot("failed-reload");
  await size(380, 900);
  await judge("narrow");
  await shot("narrow");
  if (await run("document.documentElement.scrollWidth > innerWidth")) fail("a narrow screen scrolls sideways");
  await size(1180, 800);

  // Nothing configured.
  writeFileSync(config, section);
  await reload();
  await sees("No services");
  await until("the dialog is closed", async () => !await dialog());
  await judge("empty");
  await shot("empty");
  silent("until the gateway goes");

  // The gateway goes away and comes back with other numbers.
  writeFileSync(config, section + services);
  await reload();
  await shows(a, /closed/);
  await end(gateway);
  await sees("disconnected");
  await until("the age of the data is told", () => run(`/data is \\d+ s old/.test(document.getElementById("age").textContent)`));
  await judge("disconnected");
  await shot("disconnected");
  gateway = serve();
  await sees("live");
  await until("it is not stale any more", () => run(`!document.body.classList.contains("stale")`));
  console.log("  it tells when it is disconnected, and connects again");

  // Whoever is not let in is told what to do.
  await send("Network.setExtraHTTPHeaders", { headers: { "X-Forwarded-For": "192.0.2.1" } });
  await end(gateway);
  gateway = serve();
  await sees("Not allowed from here");
  await judge("not allowed");
  await shot("forbidden");
  await send("Network.setExtraHTTPHeaders", { headers: {} });
  await send("Page.navigate", { url: HOME });
  await sees("live");

  // A token.
  writeFileSync(`${SCRATCH}/token`, "correct-horse-battery\n", { mode: 0o600 });
  writeFileSync(config, `${section}  admin: {token_file: token}\n${services}`);
  await until("the reload button works", () => run(`!document.getElementById("reload").disabled`));
  await reload();
  await sees("reloaded");
  await send("Page.navigate", { url: HOME });
  await sees("A token is needed");
  await judge("a token is needed");
  await shot("token");
  const enter = (text) => run(`(() => { document.getElementById("token").value = ${JSON.stringify(text)}; document.getElementById("token-form").requestSubmit(); })()`);
  await enter("wrong-horse-battery");
  await sees("The token was not accepted");
  await enter("correct-horse-battery");
  await sees("live");
  await shows(a, /closed/);
  clearInterval(traffic);
  console.log("  it asks for a token and uses it");
}

try {
  await main();
} catch (error) {
  console.error(`FAILED: ${error.message}`);
  if (errors.length) console.error(`console of the page:\n${errors.join("\n")}`);
  await shot("failed").catch(() => {});
  process.exitCode = 1;
} finally {
  await Promise.all(children.map((child) => end(child)));
}
process.exit();
