import * as cache from '@actions/cache'
import * as core from '@actions/core'

const paths = [core.getInput('path')], key = core.getInput('key')
try {
  if (core.getState('began')) {
    core.info('saved: ' + await cache.saveCache(paths, key))
  } else {
    core.saveState('began', 'yes')
    const hit = await cache.restoreCache(paths, key)
    core.info('restored: ' + hit)
    core.setOutput('hit', hit)
  }
} catch (err) {
  core.setFailed(err)
}
