// The echo comparison's Go peer: a goroutine a connection, bytes to upper case.
//
// usage: echo PORT
package main

import (
	"bytes"
	"log"
	"net"
	"os"
)

var word = []byte("DESCONEXION")

func serve(peer net.Conn) {
	defer peer.Close()
	data := make([]byte, 64*1024)
	for {
		size, err := peer.Read(data)
		if err != nil || bytes.Equal(bytes.TrimSpace(data[:size]), word) {
			return
		}
		for i, c := range data[:size] {
			if 'a' <= c && c <= 'z' {
				data[i] = c - ('a' - 'A')
			}
		}
		if _, err := peer.Write(data[:size]); err != nil {
			return
		}
	}
}

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: echo PORT")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	for {
		peer, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go serve(peer)
	}
}
