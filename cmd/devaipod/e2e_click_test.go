package main_test

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/chromedp/chromedp"

	"codeberg.org/devaipod/devaipod/podapi/chromium"
)

// click does the words of `browse` that are for any page.
func click(b *chromium.Browser, word, rest string) error {
	switch word {
	case "size":
		var w, h int64
		if _, err := fmt.Sscan(rest, &w, &h); err != nil {
			return err
		}
		return b.Run(chromedp.EmulateViewport(w, h))
	case "click":
		return b.Run(chromedp.Click(chromedp.JSPath(seen(rest))))
	case "type":
		return b.Run(chromedp.KeyEvent(strings.ReplaceAll(rest, `\n`, "\n")))
	case "look":
		return b.Sees(rest, seen(rest)+`.scrollIntoView({block: "center", behavior: "instant"}) || true`)
	case "shown":
		return b.Sees(rest, seen(rest))
	case "reload":
		return reload(b, rest)
	}
	return errors.New("no such word")
}

// seen is the first element of a place that a loaded page shows: `CSS with TEXT` has that text in it.
func seen(where string) string {
	css, text, _ := strings.Cut(where, " with ")
	return `[...document.querySelectorAll(` + asJSON(css) + `)].find(e => document.readyState === "complete" && e.checkVisibility() && e.textContent.includes(` + asJSON(text) + `))`
}

// reloads is how often a page is loaded again, once in two seconds.
const reloads = 150

func reload(b *chromium.Browser, where string) (err error) {
	for range reloads {
		if err = b.SeesWithin(2*time.Second, where, seen(where)); err == nil {
			return nil
		}
		if err := b.Run(chromedp.Reload()); err != nil {
			return err
		}
	}
	return err
}

// picture puts the window into the directory TEST_PICTURES, if that is set.
func picture(b *chromium.Browser, file string) error {
	taken, err := b.Picture()
	dir := os.Getenv("TEST_PICTURES")
	if err != nil || dir == "" {
		return err
	}
	from, err := png.Decode(bytes.NewReader(taken))
	if err != nil {
		return err
	}
	var small bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&small, fewColors(from)); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, file), small.Bytes(), 0o644)
}

// fewColors is a picture with its 256 most frequent colors, which is half the bytes.
func fewColors(from image.Image) image.Image {
	count := map[color.Color]int{}
	r := from.Bounds()
	for y := r.Min.Y; y < r.Max.Y; y++ {
		for x := r.Min.X; x < r.Max.X; x++ {
			count[from.At(x, y)]++
		}
	}
	all := slices.SortedFunc(maps.Keys(count), func(a, b color.Color) int { return cmp.Compare(count[b], count[a]) })
	palette := color.Palette(all[:min(len(all), 256)])
	index := map[color.Color]uint8{}
	for _, c := range all {
		index[c] = uint8(palette.Index(c))
	}
	to := image.NewPaletted(r, palette)
	for y := r.Min.Y; y < r.Max.Y; y++ {
		for x := r.Min.X; x < r.Max.X; x++ {
			to.SetColorIndex(x, y, index[from.At(x, y)])
		}
	}
	return to
}
