// An upstream for scripts/check-clients on Node's own HTTP server: lengths, ranges, chunks, trailers, interim
// responses, redirects, cookies, server-sent events, and a WebSocket echo written by hand (RFC 6455).
//
//   node upstream_node.js PORT DIRECTORY KEEP_ALIVE_MS [silent]
//
// `silent` leaves out the Keep-Alive field, so that nobody is told how soon idle connections are closed.
// It must not know that a gateway stands in front of it.
'use strict';
const crypto = require('node:crypto');
const fs = require('node:fs');
const http = require('node:http');
const path = require('node:path');

const [port, directory, keepAlive, silent] = process.argv.slice(2);

function sendFile(request, response, name) {
   let content;
   try {
      content = fs.readFileSync(path.join(directory, path.basename(name)));
   } catch {
      response.writeHead(404, { 'Content-Length': 0 }).end();
      return;
   }
   const fields = { 'Content-Type': 'text/plain', 'Accept-Ranges': 'bytes' };
   const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '');
   let status = 200;
   if (range) {
      status = 206;
      fields['Content-Range'] = `bytes ${range[1]}-${range[2]}/${content.length}`;
      content = content.subarray(Number(range[1]), Number(range[2]) + 1);
   }
   fields['Content-Length'] = content.length;
   response.writeHead(status, fields);
   response.end(request.method === 'HEAD' ? undefined : content);
}

// Answers when all has come: piped through, a large chunked body now and then stopped half-way for ever, also with curl
// straight at this server.
function echo(request, response) {
   const parts = [];
   request.on('data', (part) => parts.push(part));
   request.on('end', () => {
      const fields = { 'Content-Type': 'application/octet-stream' };
      if (request.headers.trailer) {
         fields.Trailer = request.headers.trailer;
      }
      if (request.headers['content-length']) {
         fields['Content-Length'] = request.headers['content-length'];
      }
      response.writeHead(200, fields);
      response.write(Buffer.concat(parts));
      if (request.headers.trailer) {
         response.addTrailers(request.trailers);
      }
      response.end();
   });
}

// Each event says when it was sent, in milliseconds of the machine's clock.
function events(response, query) {
   const every = Number(query.get('every') ?? 200);
   let left = Number(query.get('count') ?? 5);
   response.writeHead(200, { 'Content-Type': 'text/event-stream', 'Cache-Control': 'no-store' });
   const timer = setInterval(() => {
      response.write(`data: ${Date.now()}\n\n`);
      left -= 1;
      if (left === 0) {
         clearInterval(timer);
         response.end();
      }
   }, every);
   response.on('close', () => clearInterval(timer));
}

function chunks(response, fields, trailers) {
   const text = fs.readFileSync(path.join(directory, 'text'));
   response.writeHead(200, { 'Content-Type': 'text/plain', ...fields });
   let at = 0;
   const next = () => {
      if (at >= text.length) {
         if (trailers) {
            response.addTrailers(trailers(text));
         }
         response.end();
         return;
      }
      const end = Math.min(at + 1 + ((at * 7919) % 5000), text.length);
      response.write(text.subarray(at, end));
      at = end;
      setImmediate(next);
   };
   next();
}

const sha256 = (text) => crypto.createHash('sha256').update(text).digest('hex');

function answer(request, response) {
   // Node adds a second of its own to its server.keepAliveTimeout; behind its listener this one is exact.
   response.on('finish', () => request.socket.setTimeout(Number(keepAlive)));
   if (silent) {
      response.setHeader('Connection', 'keep-alive');
   }
   const url = new URL(request.url, 'http://upstream');
   if (request.method === 'OPTIONS') {
      return response.writeHead(204, { Allow: 'GET, HEAD, POST, PUT, OPTIONS' }).end();
   }
   switch (url.pathname) {
      case '/echo':
         return echo(request, response);
      case '/chunked':
         return chunks(response, {});
      case '/trailers':
         return chunks(response, { Trailer: 'X-Sum' }, (text) => ({ 'X-Sum': sha256(text) }));
      case '/events':
         return events(response, url.searchParams);
      case '/hints':
         return response.writeEarlyHints({ link: '</style.css>; rel=preload; as=style' }, () => response.end('hinted'));
      case '/redirect':
         return response.writeHead(302, { Location: 'text', 'Content-Length': 0 }).end();
      case '/redirect-away':
         return response.writeHead(307, { Location: 'http://elsewhere.example/a?b=c', 'Content-Length': 0 }).end();
      case '/cookies':
         response.setHeader('Set-Cookie', ['one=1; Path=/; HttpOnly', 'two="2 2"; Path=/']);
         return response.end('set');
      case '/fields':
         return response.setHeader('Content-Type', 'application/json').end(JSON.stringify(request.headers));
      case '/busy': {
         // Node reads nothing for that long; timers that are due then come before what was sent meanwhile.
         const end = Date.now() + 80;
         while (Date.now() < end);
         return response.end('was busy');
      }
      case '/empty':
         return response.writeHead(204).end();
      default:
         return sendFile(request, response, url.pathname);
   }
}

// Frames of a WebSocket; what comes is echoed, a text "ping me" is answered by a ping, whose pong gives the text
// "ponged".
class Echo {
   constructor(socket) {
      this.socket = socket;
      this.bytes = Buffer.alloc(0);
      this.parts = [];
      this.opcode = 0;
      socket.on('data', (data) => this.take(data));
      socket.on('error', () => {});
   }

   send(opcode, payload) {
      let head;
      if (payload.length < 126) {
         head = Buffer.from([0x80 | opcode, payload.length]);
      } else if (payload.length < 65536) {
         head = Buffer.from([0x80 | opcode, 126, payload.length >> 8, payload.length & 255]);
      } else {
         head = Buffer.alloc(10);
         head[0] = 0x80 | opcode;
         head[1] = 127;
         head.writeBigUInt64BE(BigInt(payload.length), 2);
      }
      this.socket.write(Buffer.concat([head, payload]));
   }

   take(data) {
      this.bytes = Buffer.concat([this.bytes, data]);
      for (;;) {
         const bytes = this.bytes;
         if (bytes.length < 2) {
            return;
         }
         let at = 2;
         let length = bytes[1] & 127;
         const wide = { 126: 2, 127: 8 }[length] ?? 0;
         if (bytes.length < at + wide + 4) {
            return;
         }
         if (wide === 2) {
            length = bytes.readUInt16BE(2);
         } else if (wide === 8) {
            length = Number(bytes.readBigUInt64BE(2));
         }
         at += wide;
         const isMasked = bytes[1] >> 7 === 1;
         if (!isMasked) {
            this.socket.destroy();
            return;
         }
         const mask = bytes.subarray(at, at + 4);
         at += 4;
         if (bytes.length < at + length) {
            return;
         }
         const payload = Buffer.from(bytes.subarray(at, at + length));
         for (let i = 0; i < length; i++) {
            payload[i] ^= mask[i & 3];
         }
         this.bytes = bytes.subarray(at + length);
         this.frame(bytes[0] >> 7 === 1, bytes[0] & 15, payload);
      }
   }

   frame(isLast, opcode, payload) {
      switch (opcode) {
         case 8:
            this.send(8, payload);
            this.socket.end();
            return;
         case 9:
            this.send(10, payload);
            return;
         case 10:
            this.send(1, Buffer.from('ponged'));
            return;
         default:
      }
      if (opcode !== 0) {
         this.opcode = opcode;
         this.parts = [];
      }
      this.parts.push(payload);
      if (!isLast) {
         return;
      }
      const message = Buffer.concat(this.parts);
      if (this.opcode === 1 && message.toString() === 'ping me') {
         this.send(9, Buffer.from('?'));
      } else {
         this.send(this.opcode, message);
      }
   }
}

const server = http.createServer(answer);
server.keepAliveTimeout = Number(keepAlive);
server.on('checkContinue', (request, response) => {
   if (request.url === '/too-much') {
      // A refusal instead of 100: the body must not come.
      response.writeHead(413, { 'Content-Length': 0, Connection: 'close' }).end();
      return;
   }
   response.writeContinue();
   answer(request, response);
});
server.on('upgrade', (request, socket, head) => {
   if (request.headers.upgrade.toLowerCase() !== 'websocket') {
      socket.end('HTTP/1.1 400 Bad Request\r\nX-Upgrade: seen\r\nConnection: close\r\nContent-Length: 0\r\n\r\n');
      return;
   }
   const key = request.headers['sec-websocket-key'] + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11';
   const accept = crypto.createHash('sha1').update(key).digest('base64');
   socket.setNoDelay(true);
   socket.write(
      'HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n' +
         `Sec-WebSocket-Accept: ${accept}\r\n\r\n`,
   );
   const connection = new Echo(socket);
   connection.take(head);
});
server.listen(Number(port), '127.0.0.1', 4096);
