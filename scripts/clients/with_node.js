// Node's http client through the gateway, for scripts/check-clients: an agent that keeps connections, trailers both
// ways, interim responses, and bursts timed at the moment when an upstream closes its idle connections.
//
//   node with_node.js PORT DIRECTORY
//
// Prints `what<TAB>result`, a line for each thing that was shown. It must not know how the gateway works inside.
'use strict';
const assert = require('node:assert');
const crypto = require('node:crypto');
const fs = require('node:fs');
const http = require('node:http');

const [port, directory] = process.argv.slice(2);
const text = fs.readFileSync(`${directory}/text`);
const agent = new http.Agent({ keepAlive: true, maxSockets: 4 });
const shown = (what, result) => console.log(`${what}\t${result}`);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// Resolves to all that came; `send` may write the body.
function ask(options, send = (request) => request.end()) {
   return new Promise((resolve, reject) => {
      const interim = [];
      const request = http.request({ host: '127.0.0.1', port, agent, timeout: 10000, ...options });
      request.on('information', (info) => interim.push(info));
      request.on('error', reject);
      request.on('timeout', () => request.destroy(new Error(`no answer: ${options.path}`)));
      request.on('response', (response) => {
         const parts = [];
         response.on('data', (part) => parts.push(part));
         response.on('error', reject);
         response.on('end', () => {
            const { statusCode: status, headers, trailers } = response;
            const body = Buffer.concat(parts);
            resolve({ status, headers, trailers, body, interim, socket: request.socket });
         });
      });
      send(request);
   });
}

async function keepAlive() {
   const paths = ['nginx/text', 'nginx/sub/text', 'node/text', 'node/chunked', 'python/text', 'python/delimited'];
   for (const path of paths) {
      const sockets = new Set();
      const one = async () => {
         const { status, body, socket } = await ask({ path: `/v1/proxy/${path}` });
         assert.equal(status, 200, path);
         assert.equal(body.toString().toLowerCase(), text.toString().toLowerCase(), path);
         sockets.add(socket);
      };
      await Promise.all(Array.from({ length: 50 }, one));
      assert(sockets.size <= 4, `${path}: ${sockets.size} connections`);
   }
   shown('keepAlive agent', '50 at once over 4 connections, from 6 resources of nginx, node, python');
}

async function trailers() {
   const sum = crypto.createHash('sha256').update(text).digest('hex');
   const response = await ask({ path: '/v1/proxy/node/trailers', headers: { TE: 'trailers' } });
   assert.equal(response.body.compare(text), 0);
   assert.equal(response.trailers['x-sum'], sum);
   const post = { method: 'POST', path: '/v1/proxy/node/echo', headers: { Trailer: 'X-End', TE: 'trailers' } };
   const up = await ask(post, (request) => {
      request.write('one ');
      setTimeout(() => {
         request.addTrailers({ 'X-End': 'of the request' });
         request.end('two');
      }, 50);
   });
   assert.equal(up.body.toString(), 'one two');
   assert.equal(up.trailers['x-end'], 'of the request');
   shown('trailers', 'of a response; of a request, echoed');
}

async function interim() {
   const hinted = await ask({ path: '/v1/proxy/node/hints' });
   assert.equal(hinted.body.toString(), 'hinted');
   assert.equal(hinted.interim.length, 1);
   assert.equal(hinted.interim[0].statusCode, 103);
   assert.equal(hinted.interim[0].headers.link, '</style.css>; rel=preload; as=style');
   let continued = 0;
   const headers = { Expect: '100-continue', 'Content-Length': 4 };
   const response = await ask({ method: 'POST', path: '/v1/proxy/node/echo', headers }, (request) => {
      request.on('continue', () => {
         continued += 1;
         request.end('body');
      });
      request.flushHeaders();
   });
   assert.equal(continued, 1);
   assert.equal(response.body.toString(), 'body');
   shown('interim responses', '103 with its Link; the body sent only on 100');
}

// The upstream closes connections that were idle for 50 ms, but is busy for 80: what comes meanwhile on an idle
// connection meets its close. Every other burst comes when the time of the connections is just over.
async function race(service) {
   const many = new http.Agent({ keepAlive: true, maxSockets: 33 });
   let requests = 0;
   const one = async (name) => {
      const { status, body } = await ask({ path: `/v1/proxy/${service}/${name}`, agent: many });
      assert.equal(status, 200, body.toString());
      requests += 1;
   };
   const end = Date.now() + 4000;
   for (let round = 0; Date.now() < end; round++) {
      await Promise.all(Array.from({ length: 32 }, () => one('small')));
      const busy = one('busy');
      await sleep(10);
      await Promise.all([busy, ...Array.from({ length: 32 }, () => one('small'))]);
      await sleep(46 + (round % 7));
   }
   many.destroy();
   return requests;
}

async function main() {
   await keepAlive();
   await trailers();
   await interim();
   for (const service of ['short', 'short-silent']) {
      const requests = await race(service);
      shown(`bursts against an upstream that closes, ${service}`, `${requests} GETs, none failed`);
   }
   agent.destroy();
}

main().catch((error) => {
   console.error(error);
   process.exit(1);
});
