// The relay comparison's Node peer: @tus/server with its own file store, as its page shows it.
//
// usage: node tus.mjs PORT FOLDER MODULES    MODULES: where npm installed @tus/server
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'

const [port, folder, modules] = process.argv.slice(2)
const found = createRequire(join(modules, 'package.json'))
const load = (name) => import(pathToFileURL(found.resolve(name)).href)
const { Server } = await load('@tus/server')
const { FileStore } = await load('@tus/file-store')

const server = new Server({ path: '/files', datastore: new FileStore({ directory: folder }) })
server.listen({ host: '127.0.0.1', port: Number(port) })
