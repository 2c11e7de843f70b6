// http-proxy-middleware behind express as its README shows; the keep-alive agent is its documented option `agent`.
'use strict'

const http = require('node:http')
const express = require('express')
const { createProxyMiddleware } = require('http-proxy-middleware')

const app = express()
app.disable('x-powered-by')
app.use(createProxyMiddleware({
  target: process.env.BENCH_UPSTREAM,
  changeOrigin: true,
  agent: new http.Agent({ keepAlive: true, maxSockets: 256, maxFreeSockets: 256 }),
  headers: { authorization: `Bearer ${process.env.BENCH_PROVIDER_TOKEN}` }
}))

app.listen(Number(process.env.BENCH_PORT), '127.0.0.1')
