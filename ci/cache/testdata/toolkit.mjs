// Saves or restores by @actions/cache, as actions/cache does:
// node toolkit.mjs PACKAGE save|restore KEY [RESTORE-KEY…], in a directory with "deps".
import { pathToFileURL } from 'node:url'
const [, , dir, what, key, ...restoreKeys] = process.argv
const cache = await import(pathToFileURL(dir + '/lib/cache.js').href)
if (!cache.isFeatureAvailable()) throw new Error('there is no cache')
if (what === 'save') {
  const id = await cache.saveCache(['deps'], key, { uploadChunkSize: 1 << 20, uploadConcurrency: 4 })
  console.log('saved: ' + (id !== -1))
} else {
  console.log('restored: ' + await cache.restoreCache(['deps'], key, restoreKeys))
}
