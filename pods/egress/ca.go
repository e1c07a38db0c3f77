package egress

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"sync"
	"time"
)

// A CA signs certificates for the hosts that a pod's secrets are for, in the pod's
// own eyes. It is safe for concurrent use.
type CA struct {
	cert *x509.Certificate
	der  []byte
	key  *ecdsa.PrivateKey
	now  func() time.Time

	mu     sync.Mutex
	leaves map[string]*tls.Certificate
}

// Lives of certificates.
const (
	caLife   = 10 * 365 * 24 * time.Hour
	leafLife = 24 * time.Hour
	// Clocks differ, and jump.
	caBackdate = 365 * 24 * time.Hour
	backdate   = time.Hour
)

// maxLeaves bounds the certificates that are kept.
const maxLeaves = 256

// NewCA makes a CA (RFC 5280; ECDSA with P-256), which is good for ten years. Its
// certificate is constrained (RFC 5280, 4.2.1.10) to the hosts given and the names
// below them, and to no IP address; no hosts are no constraint.
func NewCA(hosts ...string) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "devaipod gate"},
		NotBefore: now.Add(-caBackdate), NotAfter: now.Add(caLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, text := range hosts {
		h, err := parseHost(text)
		if err != nil || h.name == "" {
			return nil, fmt.Errorf("a certificate authority for %q: want host names", text)
		}
		template.PermittedDNSDomains = append(template.PermittedDNSDomains, h.name)
	}
	if len(hosts) > 0 {
		template.PermittedDNSDomainsCritical = true
		_, all4, _ := net.ParseCIDR("0.0.0.0/0")
		_, all6, _ := net.ParseCIDR("::/0")
		template.ExcludedIPRanges = []*net.IPNet{all4, all6}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	return newCA(der, key)
}

func newSerial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}

func newCA(der []byte, key *ecdsa.PrivateKey) (*CA, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &CA{cert: cert, der: der, key: key, now: time.Now, leaves: map[string]*tls.Certificate{}}, nil
}

// LoadCA reads what [CA.PEM] gave.
func LoadCA(certPEM, keyPEM []byte) (*CA, error) {
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("reading the gate's certificate authority: %w", err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !pair.Leaf.IsCA || time.Now().After(pair.Leaf.NotAfter) {
		return nil, errors.New("reading the gate's certificate authority: it is none with an ECDSA key that is still good; make a new one")
	}
	return newCA(pair.Certificate[0], key)
}

// PEM is the certificate, which clients have to trust, and the key (PKCS #8),
// which is a secret.
func (c *CA) PEM() (cert, key []byte, err error) {
	der, err := x509.MarshalPKCS8PrivateKey(crypto.PrivateKey(c.key))
	if err != nil {
		return nil, nil, err
	}
	cert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.der})
	return cert, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// leaf is a certificate for one host, made when there is none that lasts for
// another hour.
func (c *CA) leaf(name string) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	if leaf := c.leaves[name]; leaf != nil && now.Add(time.Hour).Before(leaf.Leaf.NotAfter) && now.After(leaf.Leaf.NotBefore) {
		return leaf, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, DNSNames: []string{name},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(leafLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, c.cert, &key.PublicKey, c.key)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	if len(c.leaves) >= maxLeaves {
		clear(c.leaves)
	}
	leaf := &tls.Certificate{Certificate: [][]byte{der, c.der}, PrivateKey: key, Leaf: parsed}
	c.leaves[name] = leaf
	return leaf, nil
}
