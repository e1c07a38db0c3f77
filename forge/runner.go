package forge

import (
	"context"
	"errors"
	"fmt"
)

// RunnerToken is a token by which a runner of Actions registers for all repositories. It
// takes a client of a site admin.
func (c *Client) RunnerToken(ctx context.Context) (string, error) {
	var t struct {
		Token string `json:"token"`
	}
	err := c.do(ctx, call{method: "GET", path: "/admin/runners/registration-token"}, &t)
	if err == nil && t.Token == "" {
		err = errors.New("the forge gave none; are Actions enabled there?")
	}
	if err != nil {
		return "", fmt.Errorf("asking for a runner's registration token: %w", err)
	}
	return t.Token, nil
}
