// @fastify/http-proxy as its README configures it: undici with a pool, here as large as the most connections used.
'use strict'

const fastify = require('fastify')({ logger: false })

const authorization = `Bearer ${process.env.BENCH_PROVIDER_TOKEN}`

fastify.register(require('@fastify/http-proxy'), {
  upstream: process.env.BENCH_UPSTREAM,
  undici: { connections: 256, pipelining: 1, keepAliveTimeout: 60_000 },
  replyOptions: {
    rewriteRequestHeaders: (request, headers) => ({ ...headers, authorization })
  }
})

fastify.listen({ host: '127.0.0.1', port: Number(process.env.BENCH_PORT) })
