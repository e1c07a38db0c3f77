import * as cache from '@actions/cache'
import * as core from '@actions/core'

const paths = [core.getInput('path')], key = core.getInput('key')

async function restore() {
  core.saveState('began', 'yes')
  const hit = await cache.restoreCache(paths, key)
  core.info('restored: ' + hit)
  core.setOutput('hit', hit)
}

async function save() {
  core.info('saved: ' + await cache.saveCache(paths, key))
}

(core.getState('began') ? save() : restore()).catch(core.setFailed)
