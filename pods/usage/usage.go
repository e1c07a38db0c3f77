package usage

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Tokens are counted as providers bill them: what is read from their cache, or
// written to it, is not among Input.
type Tokens struct {
	Input      int64 `json:"input"`
	Output     int64 `json:"output"`
	CacheRead  int64 `json:"cache_read,omitempty"`
	CacheWrite int64 `json:"cache_write,omitempty"`
}

// Sum is all of them.
func (t Tokens) Sum() int64 { return t.Input + t.Output + t.CacheRead + t.CacheWrite }

// Add is t and u together.
func (t Tokens) Add(u Tokens) Tokens {
	return Tokens{t.Input + u.Input, t.Output + u.Output, t.CacheRead + u.CacheRead, t.CacheWrite + u.CacheWrite}
}

// Money is an amount in billionths of the currency that prices are in.
type Money int64

// unit is one of the currency.
const unit = 1_000_000_000

// ParseMoney reads an amount such as "5", "$0.25" or "12.5".
func ParseMoney(s string) (Money, error) {
	f, err := strconv.ParseFloat(strings.TrimPrefix(strings.TrimSpace(s), "$"), 64)
	if err != nil || math.IsNaN(f) || f < 0 || f > 1e9 {
		return 0, fmt.Errorf("%q is no amount of money: want a number from 0 to a billion, such as 2.50", s)
	}
	return Money(math.Round(f * unit)), nil
}

// String is the amount with two digits, or four below a cent: "$12.30", "$0.0042".
func (m Money) String() string {
	digits := 2
	if m != 0 && m < unit/100 {
		digits = 4
	}
	return "$" + strconv.FormatFloat(float64(m)/unit, 'f', digits, 64)
}

// Prices are what a million tokens cost; all zero when nobody said.
type Prices struct {
	Input      float64 `json:"input" mapstructure:"input"`
	Output     float64 `json:"output" mapstructure:"output"`
	CacheRead  float64 `json:"cache_read" mapstructure:"cache_read"`
	CacheWrite float64 `json:"cache_write" mapstructure:"cache_write"`
}

// Of is the price of t.
func (p Prices) Of(t Tokens) Money {
	per := float64(t.Input)*p.Input + float64(t.Output)*p.Output + float64(t.CacheRead)*p.CacheRead + float64(t.CacheWrite)*p.CacheWrite
	return Money(math.Ceil(per * (unit / 1_000_000)))
}

// A Budget bounds what an issue may use; 0 is no bound.
type Budget struct {
	Money  Money         `json:"money"`
	Tokens int64         `json:"tokens"`
	Time   time.Duration `json:"time"` // of the model's work
}

// Totals are what was used.
type Totals struct {
	Requests int64         `json:"requests"`
	Tokens   Tokens        `json:"tokens"`
	Cost     Money         `json:"cost"`
	Time     time.Duration `json:"time"` // that the model worked, in nanoseconds
}

// Add is t and u together.
func (t Totals) Add(u Totals) Totals {
	return Totals{t.Requests + u.Requests, t.Tokens.Add(u.Tokens), t.Cost + u.Cost, t.Time + u.Time}
}

// Over tells in words which bound t reaches, "" for none.
func (b Budget) Over(t Totals) string {
	switch {
	case b.Money > 0 && t.Cost >= b.Money:
		return fmt.Sprintf("%s of %s is spent", t.Cost, b.Money)
	case b.Tokens > 0 && t.Tokens.Sum() >= b.Tokens:
		return fmt.Sprintf("%d of %d tokens are used", t.Tokens.Sum(), b.Tokens)
	case b.Time > 0 && t.Time >= b.Time:
		return fmt.Sprintf("the model has worked for %s of %s", t.Time.Round(time.Second), b.Time)
	}
	return ""
}

// ParseAmount reads one bound as people write it: "5" and "$5" are money, "200k
// tokens" and "3M tokens" are tokens, "90m" and "2h" are time. The others of b
// stay as they are.
func (b Budget) ParseAmount(s string) (Budget, error) {
	s = strings.ToLower(strings.TrimSpace(s))
	if n, ok := strings.CutSuffix(s, "tokens"); ok {
		tokens, err := ParseCount(strings.TrimSpace(n))
		if err == nil && tokens == 0 {
			err = errors.New("no agent can work with none")
		}
		if err != nil {
			return b, fmt.Errorf("%q: %w", s, err)
		}
		b.Tokens = tokens
		return b, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d > 0 {
		b.Time = d
		return b, nil
	}
	m, err := ParseMoney(s)
	if err != nil || m == 0 {
		return b, fmt.Errorf("%q is no budget: want an amount of money (5), of tokens (2M tokens) or of time (2h)", s)
	}
	b.Money = m
	return b, nil
}

// ParseCount reads a number of tokens such as "200000", "200k" or "1.5M".
func ParseCount(s string) (int64, error) {
	s = strings.ToLower(strings.TrimSpace(s))
	times := 1.0
	for suffix, n := range map[string]float64{"k": 1e3, "m": 1e6, "g": 1e9} {
		if rest, ok := strings.CutSuffix(s, suffix); ok {
			s, times = rest, n
			break
		}
	}
	f, err := strconv.ParseFloat(s, 64)
	if f *= times; err != nil || math.IsNaN(f) || f < 0 || f > 1e15 {
		return 0, fmt.Errorf("want a number of tokens such as 200000, 200k or 2M")
	}
	return int64(f), nil
}
