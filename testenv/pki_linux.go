package testenv

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// PKI is a certificate authority that exists only for one test, with the
// files that OpenVPN wants. The keys are ECDSA on P-256.
type PKI struct {
	CA                    string // path of the authority's certificate
	ServerCert, ServerKey string // paths of the server's
	ClientCert, ClientKey string // paths of the client's
	dir                   string
	caCert                *x509.Certificate
	caKey                 *ecdsa.PrivateKey
	serial                int64
}

// NewPKI makes an authority, a server's and a client's certificate, valid for
// a day, in files that live as long as the test.
func NewPKI(t TB) *PKI {
	t.Helper()
	p := &PKI{dir: t.TempDir()}
	if err := p.make(); err != nil {
		t.Fatalf("certificates: %v", err)
	}
	return p
}

func (p *PKI) make() (err error) {
	ca := p.template("testenv CA")
	ca.IsCA, ca.BasicConstraintsValid = true, true
	ca.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	if p.caKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, p.caKey.Public(), p.caKey)
	if err != nil {
		return err
	}
	if p.caCert, err = x509.ParseCertificate(der); err != nil {
		return err
	}
	if p.CA, err = p.write("ca.crt", "CERTIFICATE", der); err != nil {
		return err
	}
	if p.ServerCert, p.ServerKey, err = p.issue("server", x509.ExtKeyUsageServerAuth); err != nil {
		return err
	}
	p.ClientCert, p.ClientKey, err = p.issue("client", x509.ExtKeyUsageClientAuth)
	return err
}

func (p *PKI) template(name string) *x509.Certificate {
	p.serial++
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: big.NewInt(p.serial),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(24 * time.Hour),
	}
}

// issue makes a certificate for one end of TLS and writes it and its key.
func (p *PKI) issue(name string, usage x509.ExtKeyUsage) (cert, key string, err error) {
	c := p.template(name)
	c.KeyUsage, c.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{usage}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	der, err := x509.CreateCertificate(rand.Reader, c, p.caCert, private.Public(), p.caKey)
	if err != nil {
		return "", "", fmt.Errorf("certificate of %s: %w", name, err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return "", "", err
	}
	if cert, err = p.write(name+".crt", "CERTIFICATE", der); err != nil {
		return "", "", err
	}
	key, err = p.write(name+".key", "PRIVATE KEY", keyDER)
	return cert, key, err
}

func (p *PKI) write(name, kind string, der []byte) (string, error) {
	path := filepath.Join(p.dir, name)
	return path, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
